"use strict";
// Sorting of every table, the search for cells, and the viewer of answers. Texts are set as text, never as markup.

const byId = (id) => document.getElementById(id);

// A number that is missing comes last in both directions.
function compare(kind, sign) {
  return (left, right) => {
    if (kind === "number") {
      const [a, b] = [parseFloat(left), parseFloat(right)];
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return sign * (a - b);
    }
    return sign * left.localeCompare(right, undefined, { numeric: true });
  };
}

function markSorted(header) {
  const isDescending = header.getAttribute("aria-sort") === "descending" ||
    (header.getAttribute("aria-sort") === "none" && header.dataset.sort === "text");
  for (const other of header.parentElement.children) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  header.setAttribute("aria-sort", isDescending ? "ascending" : "descending");
  return isDescending ? 1 : -1;
}

function sortRows(table, header) {
  const inOrder = compare(header.dataset.sort, markSorted(header));
  const index = [...header.parentElement.children].indexOf(header);
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => inOrder(a.cells[index].dataset.value, b.cells[index].dataset.value));
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("th button")) {
    const header = button.parentElement;
    button.addEventListener("click", () => (table.id === "answer-table" ? sortAnswers(header) : sortRows(table, header)));
  }
}

// Cells

const cells = [...document.querySelectorAll("details.cell")];

function findCells() {
  const words = byId("find-cell").value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const cell of cells) {
    cell.hidden = !words.every((word) => cell.dataset.text.toLowerCase().includes(word));
    if (!cell.hidden) count += 1;
  }
  byId("cell-count").textContent = `${count} of ${cells.length} cells`;
}

byId("find-cell").addEventListener("input", findCells);
findCells();

// Answers: texts are numbers into one list of strings; each answer is a row of numbers

const PAGE = 200;
const data = JSON.parse(byId("answer-data").textContent);
// after EXACT, the verdict of each judge: 1 for correct, 0 for incorrect, -1 for none
const [PROTOCOL, AXIS, RECORD, PROMPT, TARGET, UNEDITED, EDITED, SCORE, EXACT] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const VERDICTS = { 1: "correct", 0: "incorrect" };
const disputed = byId("answer-disputed");
let shown = [];
let limit = PAGE;
let order = null;

const text = (number) => (number < 0 ? "–" : data.strings[number]);

function fill(select, names, all) {
  if (all) select.append(new Option(all, ""));
  names.forEach((name, number) => select.append(new Option(name, number)));
}

function columns(answer) {
  return [
    data.protocols[answer[PROTOCOL]], data.axes[answer[AXIS]], text(answer[RECORD]), text(answer[PROMPT]),
    text(answer[TARGET]), text(answer[UNEDITED]), text(answer[EDITED]), answer[SCORE].toFixed(2),
    ...answer.slice(EXACT + 1).map((verdict) => VERDICTS[verdict] ?? "–"),
  ];
}

function isDisputed(answer) {
  return answer.slice(EXACT + 1).some((verdict) => verdict >= 0 && verdict !== answer[EXACT]);
}

function filterAnswers() {
  const cell = data.cells[Number(byId("answer-cell").value)];
  const [protocol, axis] = [byId("answer-protocol").value, byId("answer-axis").value];
  const wanted = byId("answer-text").value.toLowerCase();
  const onlyWrong = byId("answer-wrong").checked;
  const onlyDisputed = disputed !== null && disputed.checked;
  const all = cell ? cell.answers : [];
  shown = all.filter((answer) =>
    (protocol === "" || answer[PROTOCOL] === Number(protocol)) &&
    (axis === "" || answer[AXIS] === Number(axis)) &&
    (!onlyWrong || answer[EXACT] === 0) &&
    (!onlyDisputed || isDisputed(answer)) &&
    (wanted === "" || columns(answer).slice(2, 7).some((each) => each.toLowerCase().includes(wanted))));
  limit = PAGE;
  if (order) shown.sort(order);
  drawAnswers();
}

function drawAnswers() {
  const rows = shown.slice(0, limit).map((answer) => {
    const row = document.createElement("tr");
    if (answer[EXACT] === 0) row.className = "wrong";
    for (const value of columns(answer)) row.insertCell().textContent = value;
    return row;
  });
  byId("answer-table").tBodies[0].replaceChildren(...rows);
  const cell = data.cells[Number(byId("answer-cell").value)];
  byId("answer-count").textContent = cell ? `${shown.length} of ${cell.answers.length} answers` : "no answers";
  byId("answer-more").hidden = shown.length <= limit;
}

function sortAnswers(header) {
  const inOrder = compare(header.dataset.sort, markSorted(header));
  const index = [...header.parentElement.children].indexOf(header);
  order = (a, b) => inOrder(columns(a)[index], columns(b)[index]);
  shown.sort(order);
  drawAnswers();
}

fill(byId("answer-cell"), data.cells.map((cell) => cell.title), "");
fill(byId("answer-protocol"), data.protocols, "all");
fill(byId("answer-axis"), data.axes, "all");
for (const id of ["answer-cell", "answer-protocol", "answer-axis", "answer-wrong"]) {
  byId(id).addEventListener("change", filterAnswers);
}
if (disputed) disputed.addEventListener("change", filterAnswers);
byId("answer-text").addEventListener("input", filterAnswers);
byId("filter").addEventListener("submit", (event) => event.preventDefault());
byId("answer-more").addEventListener("click", () => {
  limit += PAGE;
  drawAnswers();
});
for (const button of document.querySelectorAll("button.open-answers")) {
  button.addEventListener("click", () => {
    const name = button.closest("details").querySelector("code").textContent;
    byId("answer-cell").value = String(data.cells.findIndex((cell) => cell.name === name));
    filterAnswers();
    byId("answers").scrollIntoView();
  });
}
filterAnswers();
