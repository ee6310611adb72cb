"""A real SLURM cluster on this machine's loopback: its own munge, a controller, nodes, no accounting, nothing outside one folder.

Timers are as short as SLURM allows, so that a dead node is noticed in seconds and a requeued job starts again in seconds.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.slurm.cluster import guard
from tests.slurm.cluster.configuration import CONFIGURATION, PARTITIONS

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
NODE = "TESTS_SLURM_NODE"
"""Environment variable that tells steps of one node from those of another; what a job itself runs has SLURMD_NODENAME."""


class NoSlurmError(Exception):
    """Why there is no cluster here: what is not installed, or what would not start and what it said."""


class Cluster:
    """Two nodes with eight CPUs, 16 GB and two GPUs that are not there; `with Cluster().start() as cluster`.

    Args:
        max_array_size: SLURM's limit: elements of an array have smaller indices.
        first_job_id: of a cluster that starts without memory of another.
    """

    def __init__(self, nodes: int = 2, cpus: int = 8, max_array_size: int = 11, first_job_id: int = 1) -> None:
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket has 107 bytes
        self.warns_of_preemption = True
        self._guard = subprocess.Popen(
            [sys.executable, guard.__file__, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(1 + nodes)
        user = _user()
        self._configuration = CONFIGURATION.format(
            folder=self.folder, user=user, ports=ports, max_array_size=max_array_size, first_job_id=first_job_id
        )
        machine = f"CPUs={cpus} CoresPerSocket={cpus} RealMemory=16000 Gres=gpu:2 State=UNKNOWN"
        for node, port in zip(self.nodes, ports[1:], strict=True):
            self._configuration += f"NodeName={node} NodeAddr=127.0.0.1 NodeHostname={_host()} Port={port} {machine}\n"

    @property
    def environment(self) -> dict[str, str]:
        """What makes SLURM's commands, and jobs submitted with them, speak to this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}

    def __enter__(self) -> Self:
        """The cluster as it is, until the end of the block."""
        return self

    def start(self) -> Self:
        """Start it, and see a job run.

        Raises:
            NoSlurmError: if that cannot be done here; nothing of it is left then.
        """
        try:
            self._write_files()
            self._start("munged", "munged", f"--key-file={self.folder}/munge.key", "--foreground", *self._munge_files())
            self._until(lambda: (self.folder / "munge.socket").exists(), "munged makes its socket")
            self.start_controller(forget=True)
            for node in self.nodes:
                self.restart_node(node)
            self._until(lambda: self._nodes_that_are("idle") == self.nodes, "all nodes are idle", limit_s=30)
            self.run("srun", "--ntasks=1", "--mem=10", "--time=1", "true")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all of it, jobs too, and remove its folder."""
        self._guard.communicate(timeout=30)
        for daemon in self._daemons.values():
            daemon.wait()

    def run(self, *command: object, limit_s: float = 60) -> str:
        """The output of a command of SLURM.

        Raises:
            NoSlurmError: if it fails, with what it says.
        """
        arguments = list(map(str, command))
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=limit_s, env=os.environ | self.environment, check=False
        )
        if done.returncode:
            raise NoSlurmError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, script: str, *options: object) -> str:
        """The id of a new batch job with 50 MB and a script for bash."""
        return self.run("sbatch", "--parsable", "--mem=50", "--output=/dev/null", *options, f"--wrap={script}")

    def jobs(self, name: str | None = None) -> dict[str, str]:
        """SLURM's word for the state of each job that the controller remembers, of one name or all."""
        chosen = [f"--name={name}"] if name else []
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T", *chosen)
        return dict(line.split() for line in lines.splitlines())

    def until(self, job: str, *wanted: str, limit_s: float = 60) -> None:
        """Wait for a job to be in one of these states, in SLURM's words."""
        self._until(lambda: self.jobs().get(job) in wanted, f"job {job} is {' or '.join(wanted)}", limit_s)

    def end_soon(self, job: str, seconds: int) -> None:
        """Give a running job a time limit in the near future; the controller looks every half minute."""
        self.run("scontrol", "update", f"jobid={job}", f"EndTime=now+{seconds}")

    def start_controller(self, *, forget: bool = False) -> None:
        """Start the controller, with all that it knew or as the first one."""
        if forget:
            shutil.rmtree(self.folder / "state", ignore_errors=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self._start("slurmctld", "slurmctld", "-D", "-f", self.folder / "slurm.conf")
        self._until(self._answers, "slurmctld answers")

    def stop_controller(self) -> None:
        """Stop the controller; jobs run on."""
        self._kill("slurmctld", signal.SIGTERM)

    def forget(self) -> None:
        """Cancel everything and go on as a cluster that has never had a job: job ids begin anew."""
        with contextlib.suppress(NoSlurmError):
            self.run("scancel", "--full", "--me")
        self._until(lambda: not self.run("squeue", "--noheader"), "the queue is empty")
        self.stop_controller()
        self.start_controller(forget=True)
        self._until(lambda: self._nodes_that_are("idle") == self.nodes, "all nodes are idle", limit_s=30)

    def warn_of_preemption(self, warns: bool) -> None:
        """Let jobs get their signal when they are preempted, or not; `GraceTime` seconds later they are killed."""
        if warns is not self.warns_of_preemption:
            self.warns_of_preemption = warns
            self._write_configuration()
            self.run("scontrol", "reconfigure")

    def heal(self) -> None:
        """Start again what a test has killed."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        for node in self.nodes:
            if node not in self._daemons:
                self.restart_node(node)
        self._until(lambda: self._nodes_that_are("idle,alloc,mix") == self.nodes, "all nodes are up", limit_s=30)

    def kill_node(self, node: str, *, daemon_only: bool = False) -> None:
        """A node as if its power had gone: its daemon, its steps and their processes.

        Args:
            daemon_only: leave steps and processes running, as when only the daemon crashes.
        """
        self._kill(node)
        if not daemon_only:
            for variable in (NODE, "SLURMD_NODENAME"):  # steps first, so that they cannot tell how a process ended
                guard.kill_all({"SLURM_CONF": self.environment["SLURM_CONF"], variable: node})

    def restart_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf", **{NODE: node})

    def _write_files(self) -> None:
        if missing := [name for name in DAEMONS if shutil.which(name, path=PATH) is None]:
            raise NoSlurmError(f"not installed: {', '.join(missing)} (packages slurm-wlm and munge)")
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        self._write_configuration()
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        devices = "".join(f"Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero"))
        (self.folder / "gres.conf").write_text(devices)

    def _write_configuration(self) -> None:
        parameters = "SlurmctldParameters=preempt_send_user_signal\n" if self.warns_of_preemption else ""
        (self.folder / "slurm.conf").write_text(self._configuration + parameters + PARTITIONS)

    def _munge_files(self) -> list[str]:
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={self.folder}/munge.{ending}" for option, ending in names.items()]

    def _start(self, name: str, *command: object, **environment: str) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        with log:
            self._daemons[name] = subprocess.Popen(
                list(map(str, command)),
                env=os.environ | self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        if daemon := self._daemons.pop(name, None):
            daemon.send_signal(number)
            daemon.wait()

    def _answers(self) -> bool:
        return _succeeds(lambda: self.run("scontrol", "ping")) and "UP" in self.run("scontrol", "ping")

    def _nodes_that_are(self, states: str) -> list[str]:
        asked = (
            "sinfo",
            "--noheader",
            "--Node",
            "--partition=main",
            f"--states={states}",
            "--responding",
            "--format=%N",
        )
        return sorted(self.run(*asked).split())

    def _until(self, condition: Callable[[], bool], what: str, limit_s: float = 20) -> None:
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > limit_s:
                raise NoSlurmError(f"not so within {limit_s:.0f} s: {what}\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        files = [file for ending in ("log", "out") for file in sorted(self.folder.glob(f"*.{ending}"))]
        return "\n".join(
            f"{file.name}: {line}" for file in files for line in file.read_text(errors="replace").splitlines()[-5:]
        )


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except NoSlurmError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on; all held at once, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _host() -> str:
    return socket.gethostname().partition(".")[0]
