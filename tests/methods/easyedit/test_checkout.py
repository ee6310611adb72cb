"""Finding a checkout, and bringing one; none of EasyEdit's code is needed."""

import io
import subprocess
import sys

import pytest

from harness.errors import UserError
from methods.easyedit import checkout, commands
from tests.helpers.fake_checkout import git, pinned, write_checkout


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A checkout that is found and has the commit that is asked for."""
    return pinned(write_checkout(tmp_path / "source"), monkeypatch)


@pytest.fixture
def home_of_fetch(source, tmp_path, monkeypatch):
    """Nothing is found but what `fetch` brings."""
    monkeypatch.delenv("EASYEDIT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def test_a_clean_checkout_is_named_by_its_commit_alone(source):
    found = checkout.find()
    assert (found.folder, found.commit, found.changes) == (source, checkout.COMMIT, "")
    assert found.identity == {"easyedit": checkout.COMMIT}


def test_a_changed_file_changes_the_identity_and_another_change_again(source):
    identities = []
    for text in ("# once\n", "# twice\n"):
        (source / "easyeditor" / "util.py").write_text(text)
        checkout._inspect.cache_clear()
        identities.append(checkout.find().identity)
    assert identities[0] != identities[1]
    assert all(set(identity) == {"easyedit", "changes"} for identity in identities)


def test_settings_of_git_neither_hide_a_change_nor_alter_its_name(source, monkeypatch, tmp_path):
    (source / "easyeditor" / "util.py").write_text("# once\n")
    found = []
    for settings in ("", "[diff]\n external = true\n noprefix = true\n[core]\n abbrev = 20\n[color]\n ui = always\n"):
        (tmp_path / "settings").write_text(settings)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
        checkout._inspect.cache_clear()
        found.append(checkout.find().changes)
    assert found[0] == found[1] != ""


def test_changes_outside_of_the_code_are_none(source):
    (source / "hparams" / "FT.yaml").write_text("# mine\n")
    (source / "logs").mkdir()
    checkout._inspect.cache_clear()
    assert checkout.find().changes == ""


def test_another_commit_is_refused_with_the_command_that_goes_to_the_right_one(source):
    git(source, "commit", "--quiet", "--allow-empty", "-m", "second")
    checkout._inspect.cache_clear()
    with pytest.raises(UserError, match="is at commit") as caught:
        checkout.find()
    assert f"git -C {source} checkout {checkout.COMMIT}" in caught.value.fix
    assert "\n" not in str(caught.value)


def test_a_fetched_one_of_another_commit_is_to_be_fetched_again(home_of_fetch):
    """`fetch` alone would find it there and refuse it again."""
    git(commands.fetch(str(home_of_fetch)).folder, "commit", "--quiet", "--allow-empty", "-m", "second")
    checkout._inspect.cache_clear()
    with pytest.raises(UserError, match="is at commit") as caught:
        commands.fetch(str(home_of_fetch))
    assert caught.value.fix == f"rm -r {checkout.fetched()} && {checkout.FETCH}"


def test_a_folder_without_git_is_refused_also_inside_of_another_repository(source):
    inner = source / "inner"
    (inner / "easyeditor").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a git checkout"):
        checkout.at(inner)


def test_nothing_at_all_is_refused_with_both_remedies(home_of_fetch):
    assert not checkout.is_present()
    with pytest.raises(UserError, match="no EasyEdit at") as caught:
        checkout.find()
    assert "harness easyedit fetch" in caught.value.fix
    assert "EASYEDIT_HOME" in caught.value.fix


def test_a_home_that_is_wrong_does_not_fall_back_on_what_was_fetched(home_of_fetch, monkeypatch, tmp_path):
    commands.fetch(str(home_of_fetch))
    monkeypatch.setenv("EASYEDIT_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere") as caught:
        checkout.find()
    assert "unset it and python -m harness easyedit fetch" in caught.value.fix


def test_fetch_brings_the_parts_that_are_read_and_verifies_the_commit(home_of_fetch):
    found = commands.fetch(str(home_of_fetch))
    assert found == checkout.find()
    assert (found.commit, found.changes) == (checkout.COMMIT, "")
    assert (found.folder / "easyeditor" / "util.py").is_file()
    assert not (found.folder / "figs").exists()
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]


def test_fetch_goes_back_to_the_pinned_commit_of_a_repository_that_went_on(home_of_fetch):
    (home_of_fetch / "easyeditor" / "util.py").write_text("# newer\n")
    git(home_of_fetch, "commit", "--quiet", "-am", "second")
    found = commands.fetch(str(home_of_fetch))
    assert (found.folder / "easyeditor" / "util.py").read_text() == "# easyeditor/util.py\n"


def test_fetch_of_something_else_says_why_and_leaves_nothing(home_of_fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(checkout, "COMMIT", "0" * 40)
    for source in (str(home_of_fetch), str(tmp_path / "nowhere")):
        with pytest.raises(UserError, match="cannot fetch 000000000000 from") as caught:
            commands.fetch(source)
        assert "\n" not in str(caught.value)
    assert list(checkout.fetched().parent.iterdir()) == []


def test_a_fetch_that_was_cut_off_goes_on_with_what_it_has(home_of_fetch, monkeypatch, tmp_path):
    """The commit has arrived but not its files, and a lock of the git that was killed is left."""
    download = commands._download

    def cut_off(folder, command, *arguments):
        if command == "checkout":
            (folder / ".git" / "index.lock").touch()
            raise subprocess.CalledProcessError(128, command, stderr="fatal: the remote end hung up")
        download(folder, command, *arguments)

    monkeypatch.setattr(commands, "_download", cut_off)
    with pytest.raises(UserError, match="the remote end hung up"):
        commands.fetch(str(home_of_fetch))
    done = []

    def counted(folder, command, *arguments):
        done.append(command)
        download(folder, command, *arguments)

    monkeypatch.setattr(commands, "_download", counted)
    found = commands.fetch(str(home_of_fetch))
    assert done == ["checkout"]
    assert (found.commit, found.changes) == (checkout.COMMIT, "")
    assert [path.name for path in found.folder.parent.iterdir()] == [found.folder.name]


def test_on_a_terminal_git_shows_its_progress(home_of_fetch, monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr", FakeTerminal())
    commands.fetch(str(home_of_fetch))
    assert b"100%" in sys.stderr.buffer.getvalue()
    assert capfd.readouterr() == ("", "")


class FakeTerminal(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO())

    def isatty(self):
        return True


def test_a_missing_module_is_named_with_the_command_that_brings_it():
    assert checkout.absent(["json", "no_such_module"]) == ["no_such_module"]
    with pytest.raises(UserError, match="needs no_such_module") as caught:
        checkout.require(["json", "no_such_module"])
    assert "harness[easyedit]" in caught.value.fix


def test_what_is_shown_names_the_checkout_the_adapters_and_every_workaround(source):
    shown = "\n".join(commands.show())
    assert str(source) in shown
    assert "clean" in shown
    assert "ft-l" in shown
    for name in commands.WORKAROUNDS:
        assert name in shown


def test_without_git_nothing_is_taken_for_granted(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is needed"):
        checkout.find()
