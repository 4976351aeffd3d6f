"""PID 1 of a container: what the kernel expects of it, kept out of the server's process.

Processes that lose their parent become children of PID 1, which must wait for them when they end;
else they stay as zombies until no process can be started. A server cannot do that for itself: if
it waits for any child, the application's subprocess module finds that its own are gone, and takes
a failure for success. So PID 1 forks before anything else happens, the server runs in the child,
and PID 1 only passes signals on and waits.
"""

from __future__ import annotations

import os
import signal

# siginfo_t's si_code of a signal that the kernel sent of itself, as a terminal does for ^C.
_SI_KERNEL = 0x80

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)

# What systemd names a process by, which a container's first process may be told of.
_OWN_PROCESS = ("LISTEN_PID", "WATCHDOG_PID")


def run_as_init() -> int | None:
    """As PID 1: start the server in a child and return its exit status when it has ended.

    Returns None in the child, and at once where this process is not PID 1: the caller serves then.
    """
    if os.getpid() != 1:
        return None
    # A parent may have had it ignored: then the kernel waits for the children, and tells nobody.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    waited_for = {*_PASSED_ON, signal.SIGCHLD}
    # Blocked and waited for instead of handled: PID 1 does nothing else, and none is lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    child = os.fork()
    if child == 0:
        for name in _OWN_PROCESS:
            if os.environ.get(name) == "1":
                os.environ[name] = str(os.getpid())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for)
        return None
    while True:
        came = signal.sigwaitinfo(waited_for)
        if came.si_signo == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                return status
        elif came.si_code != _SI_KERNEL:
            # A terminal's signal has gone to the whole group, the server included.
            os.kill(child, came.si_signo)


def _reap(child: int) -> int | None:
    """Wait for every process that has ended; return the exit status of ``child`` once it has."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            # As a shell reports a process that a signal has ended.
            found = code if code >= 0 else 128 - code
