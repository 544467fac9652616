"""Which system calls code in a sandbox of the namespaces tier may make: data only, name by name.

What is in neither table answers ENOSYS, as an older kernel would: what came after `NEWEST_SYSCALL`, and among what came
before it clone3 (its flags are in memory, where a filter cannot look; clone's can be seen), io_uring, kcmp,
pidfd_getfd, process_madvise, memfd_secret, name_to_handle_at, statmount, listmount and the lsm_ calls. Callers then
take their older path; with EPERM they would give up.

The tables began as what container engines allow without a capability, and were then compared with what the templates
and the test suites call. Numbers are (x86_64, aarch64), None where a machine has no such call.
"""

from __future__ import annotations

from atoll.isolation.linux.sys import syscalls

NEWEST_SYSCALL = 466
"""Up to `removexattrat` (Linux 6.13). Newer calls answer ENOSYS until someone has looked at them."""

_Table = dict[str, tuple[int | None, int | None]]

ALLOWED: _Table = {
    # Files by descriptor.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "lseek": (8, 62), "close": (3, 57), "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "fcntl": (72, 25), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
    "syncfs": (306, 267), "sync": (162, 81), "sync_file_range": (277, 84), "ftruncate": (77, 46),
    "fallocate": (285, 47), "fadvise64": (221, 223), "readahead": (187, 213), "sendfile": (40, 71),
    "splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75), "copy_file_range": (326, 285), "ioctl": (16, 29),
    "pipe": (22, None), "pipe2": (293, 59), "memfd_create": (319, 279), "cachestat": (451, 451),
    # Files by name.
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80),
    "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "truncate": (76, 45),
    "chdir": (80, 49), "fchdir": (81, 50), "getcwd": (79, 17), "chroot": (161, 51), "umask": (95, 166),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "link": (86, None), "linkat": (265, 37), "unlink": (87, None), "unlinkat": (263, 35),
    "symlink": (88, None), "symlinkat": (266, 36), "readlink": (89, None), "readlinkat": (267, 78),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "mknod": (133, None), "mknodat": (259, 33),
    "getdents": (78, None), "getdents64": (217, 61), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "setxattrat": (463, 463), "getxattrat": (464, 464), "listxattrat": (465, 465),
    "removexattrat": (466, 466), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "inotify_rm_watch": (255, 28),
    # Waiting.
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "eventfd": (284, None), "eventfd2": (290, 19), "signalfd": (282, None),
    "signalfd4": (289, 74), "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    "io_setup": (206, 0), "io_destroy": (207, 1), "io_getevents": (208, 4), "io_pgetevents": (333, 292),
    "io_submit": (209, 2), "io_cancel": (210, 3),
    # Memory.
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "msync": (26, 227),
    "mincore": (27, 232), "madvise": (28, 233), "brk": (12, 214), "mlock": (149, 228), "mlock2": (325, 284),
    "munlock": (150, 229), "mlockall": (151, 230), "munlockall": (152, 231), "remap_file_pages": (216, 234),
    "pkey_mprotect": (329, 288), "pkey_alloc": (330, 289), "pkey_free": (331, 290), "membarrier": (324, 283),
    "mseal": (462, 462), "map_shadow_stack": (453, 453),
    # Sockets (families and protocols: see the rules).
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "connect": (42, 203), "shutdown": (48, 210), "getsockname": (51, 204),
    "getpeername": (52, 205), "getsockopt": (55, 209), "setsockopt": (54, 208), "sendto": (44, 206),
    "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "sendmmsg": (307, 269), "recvmmsg": (299, 243),
    # Processes and threads (namespaces: see the rules).
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "pause": (34, None), "alarm": (37, None), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "process_mrelease": (448, 448), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getpgid": (121, 155), "setpgid": (109, 154), "getpgrp": (111, None), "getsid": (124, 156),
    "setsid": (112, 157), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "arch_prctl": (158, None), "prctl": (157, 167), "unshare": (272, 97), "personality": (135, 92),
    "futex": (202, 98), "futex_waitv": (449, 449), "futex_wake": (454, 454), "futex_wait": (455, 455),
    "futex_requeue": (456, 456), "restart_syscall": (219, 128),
    # Who they are.
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getresuid": (118, 148), "getresgid": (120, 150), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149),
    "setgroups": (116, 159), "setfsuid": (122, 151), "setfsgid": (123, 152), "capget": (125, 90), "capset": (126, 91),
    # Signals.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    # Time.
    "time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "times": (100, 153), "adjtimex": (159, 171),
    "getitimer": (36, 102), "setitimer": (38, 103), "timer_create": (222, 107), "timer_settime": (223, 110),
    "timer_gettime": (224, 108), "timer_getoverrun": (225, 109), "timer_delete": (226, 111),
    # Their share of the machine.
    "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261), "getrusage": (98, 165),
    "getpriority": (140, 141), "setpriority": (141, 140), "ioprio_get": (252, 31), "ioprio_set": (251, 30),
    "sched_yield": (24, 124), "sched_setparam": (142, 118), "sched_getparam": (143, 121),
    "sched_setscheduler": (144, 119), "sched_getscheduler": (145, 120), "sched_setattr": (314, 274),
    "sched_getattr": (315, 275), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "sched_rr_get_interval": (148, 127), "sched_setaffinity": (203, 122), "sched_getaffinity": (204, 123),
    "getcpu": (309, 168), "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278),
    # Between processes.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    # The first process's, which gets its name last: nobody else has the capability.
    "sethostname": (170, 161),
    # Debuggers and tighter belts.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip

DENIED: _Table = {
    # The mount family: a fresh user namespace would bring the capability, and most kernel escapes begin here.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "setns": (308, 268), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225),
    # The kernel itself: its modules, its replacement, its clock, its log, its accounting, its ports.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58), "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "_sysctl": (156, None), "modify_ldt": (154, None),
    # Large surfaces with a record of escapes that agents' programs do without.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # Keys are not namespaced by our namespaces alone.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Files by handle go around directories; fanotify watches whole mounts.
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "setdomainname": (171, 162),
    # Memory placement across processes and NUMA nodes (Docker asks for SYS_NICE for these).
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236), "set_mempolicy_home_node": (450, 450),
}  # fmt: skip
"""These answer EPERM: what programs that try them know how to take."""


def numbers(table: _Table, machine: str = syscalls.MACHINE) -> frozenset[int]:
    """The calls of a table that this machine has."""
    column = 0 if machine == "x86_64" else 1
    return frozenset(number for row in table.values() if (number := row[column]) is not None)
