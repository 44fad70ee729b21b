"""What a kubelet hides of /proc and /sys from each container, and what it lets nobody write to."""

from typing import Final

MASKED: Final = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Without one of these root of a container is soon that of its host: none of them knows of namespaces.
HOSTS: Final = frozenset({*READ_ONLY, "/proc/kcore", "/sys/firmware"})
