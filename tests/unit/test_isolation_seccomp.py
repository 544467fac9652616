"""The filter, run by an interpreter of its own: what the kernel would decide, for every machine's numbers."""

from __future__ import annotations

import errno
import struct

import pytest

from atoll.isolation.gvisor import posture as gvisor
from atoll.isolation.linux.sys.seccomp import Rule, Test, assemble
from atoll.isolation.namespaces import posture, system_calls
from atoll.isolation.namespaces.posture import seccomp_rules
from atoll.isolation.namespaces.system_calls import NEWEST_SYSCALL

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = "allow", "kill"


def decide(program: bytes, number: int, *arguments: int, arch: int = ARCH["x86_64"]) -> str | int:
    """Runs the classic BPF program on one system call."""
    return run(program, number, *arguments, arch=arch)[0]


def run(program: bytes, number: int, *arguments: int, arch: int = ARCH["x86_64"]) -> tuple[str | int, int]:
    """The verdict, and how many instructions it took."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *(arguments + (0,) * (6 - len(arguments))))
    instructions = [struct.unpack_from("=HBBI", program, offset) for offset in range(0, len(program), 8)]
    position = accumulator = steps = 0
    while True:
        steps += 1
        code, yes, no, value = instructions[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            position += value
        elif code == 0x15:
            position += yes if accumulator == value else no
        elif code == 0x35:
            position += yes if accumulator >= value else no
        elif code == 0x45:
            position += yes if accumulator & value else no
        elif code == 0x06:
            verdict: str | int = {0x7FFF0000: ALLOW, 0x80000000: KILL, 0x7FC00000: "answered"}.get(
                value, value & 0xFFFF
            )
            return verdict, steps
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


def test_a_foreign_architecture_is_killed() -> None:
    assert decide(assemble([], 400, "x86_64"), 1, arch=0x40000003) == KILL


def test_numbers_beyond_the_newest_and_of_x32_are_absent() -> None:
    program = assemble([], 400, "x86_64")
    assert decide(program, 400) == ALLOW
    assert decide(program, 401) == errno.ENOSYS
    assert decide(program, 0x40000000 + 1) == errno.ENOSYS


def test_a_plain_rule_denies_its_number_alone() -> None:
    program = assemble([Rule(5), Rule(7, errno.ENOSYS)], 400, "x86_64")
    assert [decide(program, number) for number in (4, 5, 6, 7, 8)] == [ALLOW, errno.EPERM, ALLOW, errno.ENOSYS, ALLOW]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_in_and_not_in_compare_with_every_value(count: int) -> None:
    values = tuple(range(10, 10 + count))
    inside = assemble([Rule(5, 1, 2, Test.IN, values), Rule(6, 2)], 400, "x86_64")
    outside = assemble([Rule(5, 1, 2, Test.NOT_IN, values), Rule(6, 2)], 400, "x86_64")
    for value in range(8, 22):
        assert decide(inside, 5, 0, 0, value) == (1 if value in values else ALLOW)
        assert decide(outside, 5, 0, 0, value) == (ALLOW if value in values else 1)
    for program in (inside, outside):
        assert decide(program, 6, 0, 0, 10) == 2, "the next rule is still reached"
        assert decide(program, 4, 0, 0, 10) == ALLOW


def test_high_bits_do_not_smuggle_a_value_past() -> None:
    program = assemble([Rule(5, 1, 1, Test.IN, (0x5412,))], 400, "x86_64")
    assert decide(program, 5, 0, 0x1_0000_5412) == 1


def test_a_condition_limits_a_rule_to_some_calls() -> None:
    program = assemble([Rule(5, 1, 2, Test.NOT_IN, (0, 4), when=(0, 16)), Rule(6, 2)], 400, "x86_64")
    assert decide(program, 5, 16, 0, 12) == 1
    assert decide(program, 5, 16, 0, 4) == ALLOW
    assert decide(program, 5, 2, 0, 12) == ALLOW
    assert decide(program, 6, 16) == 2


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_posture_on_every_machine(machine: str) -> None:
    program = posture.seccomp_program(machine)
    clone, mount, socket_, ioctl, read = {"x86_64": (56, 165, 41, 16, 0), "aarch64": (220, 40, 198, 29, 63)}[machine]
    arch = ARCH[machine]
    assert decide(program, read, arch=arch) == ALLOW
    assert decide(program, mount, arch=arch) == errno.EPERM
    assert decide(program, clone, 0x11, arch=arch) == ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(program, clone, 0x11 | flag, arch=arch) == errno.EPERM
    assert decide(program, 435, arch=arch) == errno.ENOSYS
    assert decide(program, ioctl, 0, 0x5412, arch=arch) == errno.EPERM
    assert decide(program, ioctl, 0, 0x5413, arch=arch) == ALLOW
    assert [decide(program, socket_, family, 1, arch=arch) for family in (1, 2, 10, 16)] == [ALLOW] * 4
    assert {decide(program, socket_, family, arch=arch) for family in (0, 17, 29, 38, 40)} == {errno.EAFNOSUPPORT}


def test_jumps_stay_within_their_range() -> None:
    for machine in ARCH:
        program = posture.programs_seccomp_program(machine)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_in_gvisor_no_call_may_name_the_guest(machine: str) -> None:
    program = assemble(gvisor.seccomp_rules(machine), gvisor.NEWEST_SYSCALL, machine)
    column = 0 if machine == "x86_64" else 1

    def verdict(number: int, *arguments: int) -> str | int:
        return decide(program, number, *arguments, arch=ARCH[machine])

    for name, (numbers, places) in gvisor._ABOUT_A_PROCESS.items():
        for place in places:
            others = [0, 0, 0]
            assert verdict(numbers[column], *others) == ALLOW, f"{name} on others is ordinary"
            others[place] = 1
            assert verdict(numbers[column], *others) == errno.EPERM, name
            others[place] = (7 << 32) | 1
            assert verdict(numbers[column], *others) == errno.EPERM, f"{name}: the kernel looks at 32 bits"


def test_in_gvisor_the_guest_owns_no_descriptor_and_nobody_makes_namespaces() -> None:
    program = assemble(gvisor.seccomp_rules("x86_64"), gvisor.NEWEST_SYSCALL, "x86_64")
    fcntl, ioctl, clone, clone3 = 72, 16, 56, 435
    assert decide(program, fcntl, 3, 8, 1) == errno.EPERM
    assert decide(program, fcntl, 3, 8, 0xFFFFFFFF_FFFFFFFF) == errno.EPERM
    assert decide(program, fcntl, 3, 15, 0x7000) == errno.EINVAL
    assert [decide(program, fcntl, 3, 8, 77), decide(program, fcntl, 3, 4, 1)] == [ALLOW, ALLOW]
    assert decide(program, ioctl, 3, 0x8901) == decide(program, ioctl, 3, 0x8902) == errno.EPERM
    assert decide(program, ioctl, 3, 0x5401) == ALLOW
    assert decide(program, clone, 0x10000000 | 17) == errno.EPERM
    assert decide(program, clone, 0x4111) == ALLOW
    assert decide(program, clone3) == errno.ENOSYS


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_what_is_not_named_is_not_there(machine: str) -> None:
    program = posture.seccomp_program(machine)
    named = system_calls.ALLOWED | system_calls.DENIED
    assert len(system_calls.ALLOWED.keys() & system_calls.DENIED.keys()) == 0
    for table in (system_calls.ALLOWED, system_calls.DENIED):
        assert len(system_calls.numbers(table, machine)) == sum(
            row[machine == "aarch64"] is not None for row in table.values()
        )
    known = system_calls.numbers(named, machine)
    for number in range(NEWEST_SYSCALL + 40):
        if number not in known:
            assert decide(program, number, arch=ARCH[machine]) == errno.ENOSYS, number
    for number in system_calls.numbers(system_calls.DENIED, machine):
        assert decide(program, number, arch=ARCH[machine]) == errno.EPERM, number
    argued = {rule.number for rule in seccomp_rules(machine)}
    for number in system_calls.numbers(system_calls.ALLOWED, machine) - argued:
        assert decide(program, number, arch=ARCH[machine]) == ALLOW, number


def test_a_call_costs_a_dozen_instructions_however_many_are_named() -> None:
    for machine in ARCH:
        for program in (posture.seccomp_program(machine), posture.programs_seccomp_program(machine)):
            plain = system_calls.numbers(system_calls.ALLOWED, machine) - {r.number for r in seccomp_rules(machine)}
            assert max(run(program, number, arch=ARCH[machine])[1] for number in plain) <= 14


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_of_the_internet_there_are_tcp_udp_and_ping(machine: str) -> None:
    program = posture.seccomp_program(machine)
    number = {"x86_64": 41, "aarch64": 198}[machine]

    def verdict(*arguments: int) -> str | int:
        return decide(program, number, *arguments, arch=ARCH[machine])

    stream, datagram, raw, sequenced, flags = 1, 2, 3, 5, 0o2004000
    for family in (2, 10):
        for kind in (stream, datagram, stream | flags, datagram | flags):
            assert [verdict(family, kind, protocol) for protocol in (0, 1, 6, 17, 58)] == [ALLOW] * 5
            others = {verdict(family, kind, protocol) for protocol in (2, 33, 41, 47, 115, 132, 136, 255, 262)}
            assert others == {errno.EPROTONOSUPPORT}
        for kind in (raw, raw | flags, sequenced, 4, 6, 10):
            assert {verdict(family, kind, protocol) for protocol in (0, 1, 6, 132, 255)} == {errno.EPERM}
    assert verdict(16, raw, 0) == ALLOW, "netlink is spoken over such sockets"
    assert verdict(1, sequenced, 0) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_core_limit_can_be_read_but_not_changed(machine: str) -> None:
    program = posture.seccomp_program(machine)
    setrlimit, prlimit64 = {"x86_64": (160, 302), "aarch64": (164, 261)}[machine]
    core, files = 4, 7

    def verdict(number: int, *arguments: int) -> str | int:
        return decide(program, number, *arguments, arch=ARCH[machine])

    assert verdict(setrlimit, core, 0x7000_0000) == 0, "done, it says"
    assert verdict(setrlimit, (5 << 32) | core, 0x7000_0000) == 0
    assert verdict(setrlimit, files, 0x7000_0000) == ALLOW
    for pointer in (0x7000_0000, 0x7FFF_0000_0000, 1 << 63, 1):
        assert verdict(prlimit64, 0, core, pointer, 0) == 0
        assert verdict(prlimit64, 0, core, pointer, pointer) == errno.EPERM
        assert verdict(prlimit64, 0, core, 0, pointer) == ALLOW
        assert verdict(prlimit64, 0, files, pointer, pointer) == ALLOW
    assert verdict(prlimit64, 1, files, 0x7000_0000, 0) == errno.EPERM, "the guest's own are nobody's"
