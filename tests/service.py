"""A stand-in for systemd where none runs: starts one instance of a unit the way that the unit asks for. Linux, as root.

    python -m tests.service UNIT INSTANCE ROOT [--bind SOURCE:PLACE]... [COMMAND...]

Becomes the command (default: ExecStart) as the unit's user, in a root of its own: ROOT's /etc, /opt, /run and /var, the rest of
this machine's system read-only, and nothing of homes. A setting that is neither imposed here nor listed as left out is an error.
"""

import argparse
import ctypes
import os
import pwd
import resource
import shlex
import shutil
from pathlib import Path

from tests import seccomp

MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
CLONE_NEWNS, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, LAST_CAPABILITY = 0x00020000, 38, 24, 40
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
SYSTEM_FILES = ("ld.so.cache", "hosts", "resolv.conf", "nsswitch.conf", "localtime", "ssl")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LIBRARY = ctypes.CDLL(None, use_errno=True)

# What systemd does around the process, or with the machine; the tests look at what they need of it themselves.
LEFT_OUT = {
    "Description", "Wants", "After", "ConditionPathExists", "AssertPathExists", "StartLimitIntervalSec", "StartLimitBurst",
    "WantedBy", "Type", "NotifyAccess", "ExecReload", "TimeoutStartSec", "KillMode", "TimeoutStopSec", "Restart", "RestartSec",
    "RestartPreventExitStatus", "RemoveIPC", "ProtectKernelModules", "ProtectKernelLogs", "ProtectClock", "ProtectHostname",
    "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallErrorNumber",
}  # fmt: skip


class Unit:
    """The settings of a unit file; those that come several times in a row."""

    def __init__(self, path: Path, instance: str) -> None:
        self._values: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "[")):
                key, _, value = line.partition("=")
                self._values.setdefault(key, []).append(value.replace("%i", instance))
        self.name = path.name.replace("@.", f"@{instance}.")
        self.used: set[str] = set()

    def all(self, key: str) -> list[str]:
        """Every value, none where the key is missing."""
        self.used.add(key)
        return self._values.get(key, [])

    def one(self, key: str, default: str = "") -> str:
        """The value, of keys that come once."""
        (value,) = self.all(key) or [default]
        return value

    def on(self, key: str) -> bool:
        """Whether a switch is set."""
        return self.one(key, "no") in ("yes", "strict", "invisible")

    def check(self) -> None:
        """Fails for a setting that nobody has looked at."""
        unknown = self._values.keys() - self.used - LEFT_OUT
        assert not unknown, f"{self.name}: the stand-in knows nothing of {', '.join(sorted(unknown))}"


def mount(source: str | Path, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    code = LIBRARY.mount(
        str(source).encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if code:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def bind(source: Path, target: Path, writable: bool = False) -> None:
    """Shows a file or directory at another place too."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, target, flags=MS_BIND | MS_REC)
    if not writable:
        mount("none", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def build_root(new: Path, root: Path, shown: list[str]) -> None:
    """This machine's system, read-only, and `root`'s directories: ProtectSystem, ProtectHome, PrivateTmp, PrivateDevices, ..."""
    for directory in map(Path, SYSTEM):
        if directory.is_symlink():
            (new / directory.name).symlink_to(directory.readlink())
        elif directory.exists():
            bind(directory, new / directory.name)
    for name in SYSTEM_FILES:
        if (place := Path("/etc") / name).exists():
            bind(place.resolve(), new / "etc" / name)
    for name in ("passwd", "group"):
        bind(root / "etc" / name, new / "etc" / name)
    for name in ("etc/conlora", "opt/conlora", "var/lib/conlora", "var/cache/conlora", "run/systemd", "run/conlora"):
        bind(root / name, new / name)
    for name in ("tmp", "var/tmp", "dev", "proc", "root", "home"):
        (new / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        mount("tmpfs", new / name, "tmpfs", MS_NOSUID, "mode=1777")
    for source, _, place in (each.partition(":") for each in shown):
        bind(Path(source), new / place.removeprefix("/"))
    for name in DEVICES:
        bind(Path("/dev") / name, new / "dev" / name, writable=True)
    (new / "dev/shm").mkdir()
    mount("tmpfs", new / "dev/shm", "tmpfs", MS_NOSUID, "mode=1777")
    mount("proc", new / "proc", "proc", MS_NOSUID, "hidepid=invisible")
    for name in ("sys", "irq", "bus"):
        if (place := new / "proc" / name).exists():
            bind(place, place)
    bind(Path("/sys"), new / "sys")


def make_directories(unit: Unit, root: Path, new: Path, user: pwd.struct_passwd) -> dict[str, str]:
    """The unit's directories, and the variables that name them."""
    told = {}
    for kind, parent, mode in (
        ("Configuration", "etc", "0755"),
        ("State", "var/lib", "0755"),
        ("Cache", "var/cache", "0755"),
        ("Runtime", "run", "0755"),
    ):
        if name := unit.one(f"{kind}Directory"):
            place = root / parent / name
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(int(unit.one(f"{kind}DirectoryMode", mode), 8))
            if kind != "Configuration":
                os.chown(place, user.pw_uid, user.pw_gid)
                bind(place, new / parent / name, writable=True)
            told[f"{kind.upper()}_DIRECTORY"] = f"/{parent}/{name}"
    return told


def load_credentials(unit: Unit, root: Path, new: Path, user: pwd.struct_passwd) -> dict[str, str]:
    """Copies that this user alone may read. The group's right stands for the access list that systemd sets."""
    place = Path("/run/credentials") / unit.name
    inside = new / place.relative_to("/")
    inside.mkdir(parents=True)
    mount("tmpfs", inside, "tmpfs", MS_NOSUID, "mode=0550")
    os.chown(inside, 0, user.pw_gid)
    for line in unit.all("LoadCredential"):
        name, _, source = line.partition(":")
        for path in sorted((root / source.removeprefix("/")).iterdir()):
            shutil.copyfile(path, inside / f"{name}_{path.name}")
            (inside / f"{name}_{path.name}").chmod(0o440)
            os.chown(inside / f"{name}_{path.name}", 0, user.pw_gid)
    mount("none", inside, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    return {"CREDENTIALS_DIRECTORY": str(place)}


def confine(unit: Unit, user: pwd.struct_passwd) -> None:
    """Becomes the user, with nothing more than that user's rights and the calls that are left."""
    assert unit.one("CapabilityBoundingSet", "all") == ""
    for capability in range(LAST_CAPABILITY + 1):
        LIBRARY.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (int(unit.one("LimitCORE")),) * 2)
    calls = seccomp.allowed(unit.all("SystemCallFilter"))  # asks systemd-analyze
    os.umask(int(unit.one("UMask"), 8))
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    os.chdir(unit.one("WorkingDirectory"))
    assert unit.on("NoNewPrivileges")
    LIBRARY.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for key, impose in (
        ("MemoryDenyWriteExecute", seccomp.memory_deny_write_execute), ("RestrictNamespaces", seccomp.restrict_namespaces),
        ("RestrictRealtime", seccomp.restrict_realtime), ("LockPersonality", seccomp.lock_personality),
    ):  # fmt: skip
        if unit.on(key):
            impose()
    seccomp.restrict_address_families(unit.one("RestrictAddressFamilies"))
    seccomp.system_calls([" ".join(sorted(calls))])  # the last, for it lets no further filter through


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("unit", type=Path)
    parser.add_argument("instance")
    parser.add_argument("root", type=Path)
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    root, unit = arguments.root, Unit(arguments.unit, arguments.instance)
    users = [pwd.struct_passwd([*line.split(":")[:2], *map(int, line.split(":")[2:4]), *line.split(":")[4:]])
             for line in (root / "etc/passwd").read_text().splitlines()]  # fmt: skip
    user = next(each for each in users if each.pw_name == unit.one("User") == unit.one("Group"))
    for key in (
        "ProtectSystem",
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectProc",
        "ProtectKernelTunables",
        "ProtectControlGroups",
    ):
        assert unit.on(key), key  # what build_root does

    if LIBRARY.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    mount("none", Path("/"), flags=MS_REC | MS_PRIVATE)  # nothing of what follows is seen outside
    new = root / "new"
    new.mkdir(exist_ok=True)
    mount("tmpfs", new, "tmpfs", MS_NOSUID, "mode=0755")
    build_root(new, root, arguments.bind)
    seconds = int(unit.one("WatchdogSec", "0"))
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name,
        "NOTIFY_SOCKET": f"/run/systemd/{arguments.instance}.notify", "WATCHDOG_USEC": str(seconds * 1_000_000),
        "WATCHDOG_PID": str(os.getpid()),
        **make_directories(unit, root, new, user),
        **load_credentials(unit, root, new, user),
        **dict(word.split("=", 1) for line in unit.all("Environment") for word in shlex.split(line)),
    }  # fmt: skip
    command = arguments.command or shlex.split(unit.one("ExecStart"))
    unit.used.add("ExecStart")
    mount("none", new, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chroot(new)
    os.chdir("/")
    confine(unit, user)
    unit.check()
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
