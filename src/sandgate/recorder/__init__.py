"""The recorder: a process that hears of the kernel what it refused and what it forwarded."""
