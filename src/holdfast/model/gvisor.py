"""What there is to be said of gVisor's runsc wherever it is named."""

from typing import Final

RUNSC: Final = "runsc"  # whatever program bears this name is taken to be it
PLATFORMS: Final = ("systrap", "ptrace", "kvm")  # by which system calls come to it; the first is the default
