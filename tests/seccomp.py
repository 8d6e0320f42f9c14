"""The system call filters that systemd makes of a unit's settings, for a process that is about to become the service.

With libseccomp, as systemd itself. Groups of calls (@system-service, ...) are those of the systemd that is installed.
"""

import ctypes
import errno
import subprocess
from collections.abc import Iterable
from functools import cache

ALLOW = 0x7FFF0000
NOT_EQUAL, EQUAL, GREATER_EQUAL, MASKED_EQUAL = 1, 4, 5, 7  # of seccomp.h
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)  # CLONE_NEW*
LAST_FAMILY, LAST_ORDINARY_POLICY = 45, 5  # of socket.h, sched.h: above SCHED_IDLE there is SCHED_DEADLINE
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def deny(number: int = errno.EPERM) -> int:
    """The action that lets a call fail."""
    return 0x00050000 | number


class Filter:
    """One filter; loaded ones add up, and can't be taken back."""

    def __init__(self, otherwise: int = ALLOW) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison),
        ]  # fmt: skip
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action: int, call: str, *where: tuple[int, int, int, int]) -> None:
        """where: argument, comparison, its operands. A call that this machine does not have is passed over."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number >= 0 or number < -1:  # -1: no such name; below: not of this architecture
            comparisons = (Comparison * max(1, len(where)))(*(Comparison(*each) for each in where))
            code = self._library.seccomp_rule_add_array(self._context, action, number, len(where), comparisons)
            assert code in (0, -errno.EDOM, -errno.EINVAL), f"{call}: libseccomp says {code}"

    def load(self) -> None:
        """From now on it holds for this process and all that it starts."""
        code = self._library.seccomp_load(self._context)
        assert code == 0, f"the filter can't be loaded: {code}"


@cache
def group(name: str) -> frozenset[str]:
    """The calls of a group such as @system-service."""
    if not name.startswith("@"):
        return frozenset({name})
    told = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    members = [line.strip() for line in told.splitlines()[1:]]
    return frozenset().union(*(group(member) for member in members if member and not member.startswith("#")))


def allowed(lines: Iterable[str]) -> frozenset[str]:
    """What `SystemCallFilter=` lines let through, of which the first is a list of what is allowed."""
    calls = group("@default")
    for line in lines:
        names = frozenset().union(*(group(name) for name in line.removeprefix("~").split()))
        calls = calls - names if line.startswith("~") else calls | names
    return calls


def system_calls(lines: Iterable[str]) -> None:
    """SystemCallFilter= and SystemCallArchitectures=native."""
    only = Filter(deny())
    for call in sorted(allowed(lines)):
        only.rule(ALLOW, call)
    only.load()


def memory_deny_write_execute() -> None:
    """No memory that is written and then run."""
    both = PROT_WRITE | PROT_EXEC
    no = Filter()
    no.rule(deny(), "mmap", (2, MASKED_EQUAL, both, both))
    for call in ("mprotect", "pkey_mprotect"):
        no.rule(deny(), call, (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
    no.rule(deny(), "shmat", (2, MASKED_EQUAL, SHM_EXEC, SHM_EXEC))
    no.load()


def restrict_namespaces() -> None:
    """No namespaces of its own."""
    no = Filter()
    for flag in NAMESPACES:
        no.rule(deny(), "clone", (0, MASKED_EQUAL, flag, flag))
        no.rule(deny(), "unshare", (0, MASKED_EQUAL, flag, flag))
    no.rule(deny(errno.ENOSYS), "clone3")  # its flags lie in memory, where a filter can't look
    no.rule(deny(), "setns")
    no.load()


def restrict_address_families(words: str) -> None:
    """Only these sockets."""
    families = {FAMILIES[word] for word in words.split()}
    no = Filter()
    for family in range(LAST_FAMILY + 1):
        if family not in families:
            no.rule(deny(errno.EAFNOSUPPORT), "socket", (0, EQUAL, family, 0))
    no.rule(deny(errno.EAFNOSUPPORT), "socket", (0, GREATER_EQUAL, LAST_FAMILY + 1, 0))
    no.load()


def restrict_realtime() -> None:
    """No real-time scheduling."""
    no = Filter()
    for policy in (1, 2):  # SCHED_FIFO, SCHED_RR
        no.rule(deny(), "sched_setscheduler", (1, EQUAL, policy, 0))
    no.rule(deny(), "sched_setscheduler", (1, GREATER_EQUAL, LAST_ORDINARY_POLICY + 1, 0))
    no.load()


def lock_personality() -> None:
    """The execution domain stays as it is."""
    no = Filter()
    no.rule(deny(), "personality", (0, NOT_EQUAL, 0, 0))
    no.load()
