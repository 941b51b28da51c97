"""All commands: the first level, each of them loaded when it is called, and the flags that all share."""

from __future__ import annotations

from utsuwa.cli.command import TEXT, Command, Entry, Flag

GLOBAL_FLAGS = (
    Flag("debug", "Show what goes over the wire"),
    Flag("force-local", "Use the local unix socket, whatever the default remote is"),
    Flag("help", "Print help", "h"),
    Flag("project", "Override the project", kind=TEXT, complete="projects"),
    Flag("quiet", "Don't show progress information", "q"),
    Flag("verbose", "Show all information messages", "v"),
    Flag("version", "Print version number"),
)

ROOT = Command(
    "utsuwa",
    "The client of Utsuwa: system containers on this host and on others",
    details="Objects on another server are written <remote>:<name>; see `utsuwa remote list`.",
    children=(
        Entry("delete", "delete", "Delete instances", ("rm",)),
        Entry("exec", "execute", "Execute commands in instances"),
        Entry("info", "info", "Show instance or server information"),
        Entry("init", "create:INIT", "Create instances from images"),
        Entry("launch", "create:LAUNCH", "Create and start instances from images"),
        Entry("list", "instances", "List instances", ("ls",)),
        Entry("pause", "state:PAUSE", "Pause instances"),
        Entry("rename", "rename", "Rename instances"),
        Entry("restart", "state:RESTART", "Restart instances"),
        Entry("start", "state:START", "Start instances"),
        Entry("stop", "state:STOP", "Stop instances"),
    ),
)
