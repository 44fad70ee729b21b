"""The system calls of the default seccomp profile: which are allowed, and which need a capability first.

Facts, kept by hand: names and conditions as the default profile of moby/profiles has them, which is containerd's too
(as of 2026; ADR 25 says how this is brought up to date), ordered here by what they are for. Names are libseccomp's; one
that a libseccomp, an architecture or a kernel does not know is passed over by crun and runc.
"""

from typing import Final


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED: Final = {
    "files": _names("""
        access cachestat chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
        fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd
        getdents getdents64 ioctl lchown lchown32 link linkat listmount _llseek lseek lstat lstat64 mkdir mkdirat mknod
        mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev
        pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice
        stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs tee truncate
        truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
    """),
    "attributes": _names("""
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
        lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """),
    "waiting": _names("""
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
        eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
        io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect poll ppoll ppoll_time64 pselect6
        pselect6_time64 select signalfd signalfd4
    """),
    "memory": _names("""
        brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
        mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
    """),
    "processes": _names("""
        capget capset execve execveat exit exit_group fork getpgid getpgrp getpid getppid getpriority getrusage getsid
        gettid get_robust_list get_thread_area ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
        landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease process_vm_readv
        process_vm_writev ptrace restart_syscall rseq seccomp setpgid setpriority setrlimit setsid set_robust_list
        set_thread_area set_tid_address getrlimit ugetrlimit tgkill tkill uretprobe vfork wait4 waitid waitpid
    """),
    "users": _names("""
        getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid
        getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32
        setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32
    """),
    "signals": _names("""
        alarm pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
        rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
    """),
    "scheduling": _names("""
        getcpu sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield
    """),
    "time": _names("""
        adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
        timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
    """),
    "locks and messages": _names("""
        futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake ipc mq_getsetattr mq_notify mq_open
        mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd
        semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
    """),
    "network": _names("""
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
    """),
    "system": _names("getrandom riscv_hwprobe sysinfo uname"),
}

BY_MACHINE: Final = {  # as uname(2) names it
    "x86_64": _names("arch_prctl modify_ldt"),
    "i686": _names("modify_ldt"),
    "aarch64": _names("arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
    "ppc64le": _names("swapcontext sync_file_range2"),
    "riscv64": _names("riscv_flush_icache"),
    "s390x": _names("s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
}

BY_CAPABILITY: Final = {  # clone and clone3 have rules of their own
    "BPF": _names("bpf"),
    "DAC_READ_SEARCH": _names("open_by_handle_at"),
    "PERFMON": _names("perf_event_open"),
    "SYSLOG": _names("syslog"),
    "SYS_ADMIN": _names("""
        bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname
        sethostname setns syslog umount umount2 unshare
    """),
    "SYS_BOOT": _names("reboot"),
    "SYS_CHROOT": _names("chroot"),
    "SYS_MODULE": _names("delete_module finit_module init_module"),
    "SYS_NICE": _names("get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    "SYS_PACCT": _names("acct"),
    "SYS_PTRACE": _names("kcmp pidfd_getfd process_madvise"),
    "SYS_RAWIO": _names("ioperm iopl"),
    "SYS_TIME": _names("clock_settime clock_settime64 settimeofday stime"),
    "SYS_TTY_CONFIG": _names("vhangup"),
}

# Known to kernels and never allowed. They are refused by EPERM, what is not listed anywhere by ENOSYS: a C library that
# tries what is newer than this list then falls back to what it has always done.
REFUSED: Final = _names("""
    add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl migrate_pages move_pages
    nfsservctl pivot_root request_key swapoff swapon sysfs _sysctl uselib userfaultfd ustat vm86 vm86old
""")

AF_ALG: Final = 38  # the kernel's cryptography, for which containers have no use and which had CVE-2026-31431
AF_VSOCK: Final = 40  # to the hypervisor and other guests, in no namespace
PERSONALITIES: Final = (0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)  # Linux, 32 bits, uname 2.6, both, and asking
NAMESPACE_FLAGS: Final = (0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)
