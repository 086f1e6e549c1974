"""The files that others need to run gazer as a service: a systemd unit, a section for supervisord,
a logrotate file.

They stand here once, as templates.  `gazer init` fills in an operator's paths, gazer.docgen the
ones of `Site()` for configs/.

Rules
- What goes in is plain (`Site.problems`): each of the three formats quotes in its own way, and some
  places of theirs can't be quoted at all.  A path that would need it is refused.
- Nothing that root opens stands where the service's user can write: a link laid there would lead
  root to any file.  That is the file for what gazer says under supervisord (`error_dir`); systemd
  has the journal, and logrotate works as the user (`su`).
- Waiting is longer outside than inside: whoever stops gazer kills it no sooner than a while after
  service.shutdown_timeout, which is for draining.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import Template

# Letters and digits of ASCII, and what none of the formats makes anything of.
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@:,=-]*", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)

# Seconds beyond the default of service.shutdown_timeout (30 s) for what comes after draining.
STOP_SECONDS = 45


@dataclass(frozen=True, slots=True)
class Site:
    """Where things are on a machine."""

    command: str = "/opt/gazer/bin/gazer"
    config: str = "/etc/gazer/sensor.yaml"
    log_dir: str = "/var/log/gazer"
    user: str = "gazer"
    error_dir: str = "/var/log"         # where root alone writes, and which is there everywhere
    ways: tuple[str, ...] = ()          # whatever else is passed or read on the way to all of that

    def problems(self) -> Iterator[str]:
        """What can't stand in these files, line by line."""
        for path in (self.command, self.config, self.log_dir, self.error_dir):
            if not _PLAIN.fullmatch(path):
                yield (
                    f"{path!a}: can't stand in service files: give an absolute path of letters, "
                    "digits and ._+@:,=-"
                )
        if not _USER.fullmatch(self.user):
            yield f"{self.user!a}: not the name of a user: a-z, 0-9, _ and -, at most 32"

    def below(self, *places: str) -> bool:
        """Whether anything that the service reads or runs is below one of these folders."""
        return any(f"{path}/".startswith(f"{place}/") for path in self._paths() for place in places)

    def _paths(self) -> tuple[str, ...]:
        return self.command, self.config, self.log_dir, *self.ways


def systemd_unit(site: Site) -> str:
    """gazer.service."""
    parent, _, last = site.log_dir.rpartition("/")
    logs = (
        f"LogsDirectory={last}\nLogsDirectoryMode=0750"
        if parent == "/var/log" and last
        else f"ReadWritePaths={site.log_dir}"
    )
    return _filled(
        _SYSTEMD,
        site,
        logs=logs,
        home="read-only" if site.below("/home", "/root", "/run/user") else "yes",
        tmp="no" if site.below("/tmp", "/var/tmp") else "yes",
    )


def supervisord_section(site: Site) -> str:
    """gazer.supervisord.conf."""
    return _filled(_SUPERVISORD, site)


def logrotate_file(site: Site) -> str:
    """gazer.logrotate."""
    return _filled(_LOGROTATE, site)


# Name of the file -> what makes it.
FILES: dict[str, Callable[[Site], str]] = {
    "gazer.service": systemd_unit,
    "gazer.supervisord.conf": supervisord_section,
    "gazer.logrotate": logrotate_file,
}


def _filled(template: str, site: Site, **more: str) -> str:
    known = {
        "command": site.command,
        "config": site.config,
        "log_dir": site.log_dir,
        "error_dir": site.error_dir.rstrip("/"),
        "user": site.user,
        "stop": str(STOP_SECONDS),
    }
    return Template(template).substitute(known | more)


_SYSTEMD = """\
# gazer, a passive DNS sensor, under systemd:
#
#     systemctl enable --now /path/to/this/gazer.service
#     systemctl reload gazer          read the configuration again, reopen the logs
#     systemctl kill -s USR1 --kill-who=main gazer    write the counters to the journal
#     journalctl -u gazer             what it says of itself
#
# It is started as an ordinary user with one capability, CAP_NET_RAW: to open packet sockets.

[Unit]
Description=gazer, a passive DNS sensor
# No interface is waited for here: gazer does that itself, and goes on when one comes back.
After=network.target
# It starts dead processes of its own again.  When that does not help it ends, and is started anew;
# what ends five times within five minutes has a reason, which the journal tells.
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
ExecStart=$command run -c $config
ExecReload=/bin/kill -HUP $$MAINPID

# It says when it captures, while it reloads, when it stops, and that it is alive.
Type=notify
NotifyAccess=main
TimeoutStartSec=60
WatchdogSec=30

Restart=on-failure
RestartSec=2
# A wrong configuration is still wrong two seconds later.
RestartPreventExitStatus=2

# TERM to the supervisor alone, which drains its processes in their order; longer than
# service.shutdown_timeout.  Only what is left then is killed.
KillMode=mixed
TimeoutStopSec=$stop

User=$user
Group=$user
UMask=0027
AmbientCapabilities=CAP_NET_RAW
CapabilityBoundingSet=CAP_NET_RAW
NoNewPrivileges=yes
# Some file descriptors for each process and ring.
LimitNOFILE=65536

# What may be written: its logs, and shared memory in /dev/shm.
$logs
RuntimeDirectory=gazer
RuntimeDirectoryMode=0750
ProtectSystem=strict
ProtectHome=$home
PrivateTmp=$tmp
PrivateDevices=yes

# Packet sockets to capture, netlink and a socket to ask about interfaces, UNIX for what it says to
# systemd, IP for the metrics and for outputs.
RestrictAddressFamilies=AF_PACKET AF_NETLINK AF_UNIX AF_INET AF_INET6
# seccomp: the workers take from themselves what is left of system calls.
SystemCallFilter=@system-service seccomp
SystemCallFilter=~@keyring
SystemCallErrorNumber=EPERM
SystemCallArchitectures=native
MemoryDenyWriteExecute=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
# Not ProtectProc: who serves metrics looks at the other processes, which can't be traced (no core
# dumps), and what can't be traced would be invisible even to the same user.
# Not RemoveIPC: it would take the shared memory of a second sensor of the same user.
# Not PrivateNetwork, PrivateUsers: it has to see the machine's own interfaces.

[Install]
WantedBy=multi-user.target
"""

_SUPERVISORD = """\
; gazer, a passive DNS sensor, under supervisord: include this file, then
;
;     supervisorctl update
;     supervisorctl signal HUP gazer      read the configuration again, reopen the logs
;     supervisorctl signal USR1 gazer     write the counters to its standard error
;
; Where supervisord is root, gazer starts as root and its processes become service.user.  Where it
; is not, supervisord needs an ambient CAP_NET_RAW to hand on.  $log_dir has to be there.

[program:gazer]
command=$command run -c $config
directory=/
umask=027

autostart=true
; Up after two seconds; a configuration that is wrong does not get that far, and after three more
; tries it is FATAL.
startsecs=2
startretries=3
autorestart=unexpected
exitcodes=0,2

; TERM to the supervisor alone, which drains its processes in their order; longer than
; service.shutdown_timeout.  What is left then is killed.
stopsignal=TERM
stopwaitsecs=$stop
stopasgroup=false
killasgroup=true

; Events go to the outputs of the configuration.  What gazer says of itself goes to standard error.
; supervisord opens that file, as root: not in a folder of service.user's, where a link could lead
; it to any file.  A supervisord that is not root needs a folder that it may write to.
redirect_stderr=false
stdout_logfile=NONE
stderr_logfile=$error_dir/gazer.err
stderr_logfile_maxbytes=10MB
stderr_logfile_backups=5
"""

_LOGROTATE = """\
# Rotation of gazer's logs: copy or link this into /etc/logrotate.d (owned by root, mode 0644).
#
# Files are renamed; then gazer is told to open new ones.  Until it has, it writes to the renamed
# file, so nothing is lost, and delaycompress leaves that file alone for a day.

$log_dir/*.log {
    daily
    rotate 14
    maxsize 4G
    missingok
    notifempty
    compress
    delaycompress
    # gazer makes the new file itself
    nocreate
    # the folder belongs to this user
    su $user $user
    sharedscripts
    postrotate
        if systemctl --quiet is-active gazer.service 2>/dev/null; then
            systemctl reload gazer.service
        elif command -v supervisorctl >/dev/null; then
            supervisorctl signal HUP gazer >/dev/null
        fi
    endscript
}
"""
