"""Count or drop records that contradict each other or themselves, which no method can satisfy."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from harness.records import EditRecord


@dataclass(frozen=True, slots=True)
class Conflicts:
    """Number of contradictions among records that are edited together.

    Attributes:
        unchanged: edits whose target is already the ground truth.
        facts: edits that give a subject and relation a different target than an earlier edit.
        rephrases: rephrases that are another edit's prompt with a different target.
        shared_rephrases: rephrases that are also a rephrase of an earlier edit with a different target.
        locality: locality probes whose prompt is edited, whatever their answer: it is compared with the unedited model's.
        portability: portability probes whose prompt is edited to a different answer.
    """

    unchanged: int = 0
    facts: int = 0
    rephrases: int = 0
    shared_rephrases: int = 0
    locality: int = 0
    portability: int = 0

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} {what if count != 1 else one}"
            for (one, what), field in zip(_WORDS, fields(self), strict=True)
            if (count := getattr(self, field.name))
        )

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


_WORDS = (
    ("edit changes nothing", "edits change nothing"),
    ("edit gives a fact a second target", "edits give a fact a second target"),
    (
        "rephrase is another edit's prompt with another target",
        "rephrases are another edit's prompt with another target",
    ),
    ("rephrase is another edit's with another target", "rephrases are another edit's with another target"),
    ("locality probe is an edited prompt", "locality probes are edited prompts"),
    ("portability probe is an edited prompt", "portability probes are edited prompts"),
)


def count(edits: Sequence[EditRecord]) -> Conflicts:
    """Count the contradictions among records that are edited together."""
    target_of = {record.prompt: record.target_new for record in edits}
    facts: dict[tuple[str, str], str] = {}
    rephrased: dict[str, str] = {}
    found: dict[str, int] = defaultdict(int)
    for record in edits:
        target = record.target_new
        found["unchanged"] += target == record.ground_truth
        found["facts"] += bool(record.relation) and facts.setdefault(_fact(record), target) != target
        for text in record.rephrases:
            if text in target_of:
                found["rephrases"] += target_of[text] != target
            else:
                found["shared_rephrases"] += rephrased.setdefault(text, target) != target
        found["locality"] += sum(probe.prompt in target_of for probe in record.locality)
        found["portability"] += sum(
            target_of.get(probe.prompt, probe.answer) != probe.answer for probe in record.portability
        )
    return Conflicts(**found)


def consistent(
    records: Iterable[EditRecord], seen: Callable[[EditRecord], EditRecord] = lambda record: record
) -> Iterator[EditRecord]:
    """Yield the records in order, without those that contradict themselves or an earlier one that was yielded.

    `count` of any number of yielded records is zero.

    Args:
        records: candidates.
        seen: the form in which a record is edited and asked.
    """
    targets: dict[str, str] = {}
    rephrased: dict[str, str] = {}
    facts: dict[tuple[str, str], str] = {}
    must_stay: set[str] = set()
    follows: dict[str, set[str]] = defaultdict(set)
    for raw in records:
        record = seen(raw)
        target = record.target_new
        local = {probe.prompt for probe in record.locality}
        if (
            target == record.ground_truth
            or (record.relation and facts.get(_fact(record), target) != target)
            or any(known.get(text, target) != target for text in record.rephrases for known in (targets, rephrased))
            or rephrased.get(record.prompt, target) != target
            or record.prompt in must_stay
            or record.prompt in local
            or not local.isdisjoint(targets)
            or not follows[record.prompt] <= {target}
            or any(
                known.get(probe.prompt, probe.answer) != probe.answer
                for probe in record.portability
                for known in (targets, {record.prompt: target})
            )
        ):
            continue
        targets[record.prompt] = target
        facts[_fact(record)] = target
        rephrased |= dict.fromkeys(record.rephrases, target)
        must_stay |= local
        for probe in record.portability:
            follows[probe.prompt].add(probe.answer)
        yield raw


def _fact(record: EditRecord) -> tuple[str, str]:
    return record.subject, record.relation
