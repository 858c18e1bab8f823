"""The sandbox of a decoder process, entered once all libraries are loaded.

A decoder needs memory, threads, its pipes and its two files, all of which it has. So it can open no file descriptor
(RLIMIT_NOFILE), no file and no TCP connection (Landlock, landlock(7)), and only make the system calls of SYSTEM_CALLS
(seccomp(2)); others fail with EPERM. The layers are independent: a system that lacks one still has the rest.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys

# Names of system calls and their numbers on x86-64 and arm64 (asm/unistd_64.h, asm-generic/unistd.h).
SYSTEM_CALLS = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "pwrite64": (18, 68),
    "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233),
    "clone": (56, 220), "set_robust_list": (273, 99), "rseq": (334, 293), "futex": (202, 98), "gettid": (186, 178),
    "getpid": (39, 172), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "membarrier": (324, 283),
    "exit": (60, 93), "exit_group": (231, 94),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "getrusage": (98, 165), "sysinfo": (99, 179), "getrandom": (318, 278),
    "prlimit64": (302, 261), "getcwd": (79, 17),
}  # fmt: skip
CLONE3 = 435  # on both; its flags are in memory, where a filter can't look
SECCOMP = (317, 277)
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38  # linux/prctl.h
CLONE_THREAD, PROT_EXEC = 0x10000, 4  # linux/sched.h, sys/mman.h
# linux/bpf_common.h, linux/seccomp.h: load a word, jump if equal, jump if any of the bits is set, return.
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
SET_MODE_FILTER, ALL_THREADS = 1, 1
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data; the low half of an argument comes first
# landlock(7): the rights of a version of its interface, as how many bits are known; files, then TCP and scopes.
CREATE_RULESET, RESTRICT_SELF, GET_VERSION = 444, 446, 1
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
NEWEST_FILE_RIGHTS, TCP_RIGHTS, SCOPES = 16, 2, 2
TCP_SINCE, SCOPES_SINCE = 4, 6

# Of the parent's environment, what an interpreter needs to start; the rest, secrets among it, is not passed on.
PASSED_ON = ("PATH", "LANG", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH")


def environment(more: dict[str, str]) -> dict[str, str]:
    """The environment of a decoder: PASSED_ON, and ``more``."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | more


def hide_memory() -> None:
    """Keep other processes of this user from reading this one's memory and environment (PR_SET_DUMPABLE)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter() -> list[str]:
    """Confine this process for good. Returns which layers are missing, and why."""
    missing = []
    if sys.platform == "linux":
        for layer, confine in (("Landlock", _landlock), ("seccomp", _seccomp)):
            try:
                confine()
            except OSError as error:
                missing.append(f"{layer}: {error.strerror}")
    else:
        missing.append(f"seccomp and Landlock: not on {sys.platform}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return missing


def _landlock() -> None:
    """Forbid everything that Landlock of this kernel knows, by handling all of it and allowing nothing."""
    version = _system_call(CREATE_RULESET, None, 0, GET_VERSION)
    files = (1 << FILE_RIGHTS.get(version, NEWEST_FILE_RIGHTS)) - 1
    handled = [files]
    if version >= TCP_SINCE:
        handled.append((1 << TCP_RIGHTS) - 1)
    if version >= SCOPES_SINCE:
        handled.append((1 << SCOPES) - 1)
    attributes = struct.pack(f"={len(handled)}Q", *handled)
    ruleset = _system_call(CREATE_RULESET, attributes, len(attributes), 0)
    _no_new_privileges()
    _system_call(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _seccomp() -> None:
    if platform.machine() not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no list of system calls for {platform.machine()}")
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _filter(platform.machine()))
    program = ctypes.create_string_buffer(code)
    described = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    _no_new_privileges()
    column = list(ARCHITECTURES).index(platform.machine())
    _system_call(SECCOMP[column], SET_MODE_FILTER, ALL_THREADS, described)


def _filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The program: opcode, jump if true, jump if false, operand."""
    column = list(ARCHITECTURES).index(machine)
    numbers = {name: both[column] for name, both in SYSTEM_CALLS.items()}

    def allowed_if(name: str, argument: int, test: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        return [
            (EQUAL, 0, 4, numbers.pop(name)),
            (LOAD, 0, 0, ARGUMENTS_AT + 8 * argument),
            test,
            (RETURN, 0, 0, REFUSE | errno.EPERM),
            (RETURN, 0, 0, ALLOW),
        ]

    program = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),  # the C library then takes clone
        *allowed_if("clone", 0, (ANY_BIT, 1, 0, CLONE_THREAD)),
        *allowed_if("prlimit64", 0, (EQUAL, 1, 0, 0)),  # of this process
        *allowed_if("mmap", 2, (ANY_BIT, 0, 1, PROT_EXEC)),
        *allowed_if("mprotect", 2, (ANY_BIT, 0, 1, PROT_EXEC)),
    ]
    for number in numbers.values():
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return [*program, (RETURN, 0, 0, REFUSE | errno.EPERM)]


def _no_new_privileges() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    """Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    result: int = call(
        ctypes.c_long(number), *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
