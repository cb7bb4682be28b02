# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Stop PM2 components and what depends on them, the last in the order of their start first, and prove that they are gone."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import Component
from ansible_collections.titan.disaster_recovery.plugins.module_utils._pm2 import (
    App,
    Finding,
    Pm2Error,
    Process,
    Sample,
    find_daemon,
    strays,
)
from ansible_collections.titan.disaster_recovery.plugins.module_utils._probe import PASS
from ansible_collections.titan.disaster_recovery.plugins.module_utils._start import Outcome, Starter, StartError, dumped_names


def users_of(kind: str, components: Iterable[Component]) -> set[str]:
    """Names of the PM2 components that depend on a component of this kind, directly or through others."""
    known = list(components)
    return with_dependents({component.name for component in known if component.kind == kind}, known)


def with_dependents(names: Iterable[str], components: Iterable[Component]) -> set[str]:
    """Names of the PM2 components among these, and of those that depend on one of them, directly or through others."""
    known = list(components)
    found = set(names)
    while more := {component.name for component in known if found.intersection(component.depends_on)} - found:
        found |= more
    return {component.name for component in known if component.kind == "pm2" and component.name in found}


class Stopper(Starter):
    """The starter's way of clearing a place, from the last level to the first, with nothing started in it.

    `only`: these components and what depends on them; None: what uses Redis.
    Applications are deleted from the daemon and not only stopped: PM2 starts a stopped one again at its next C(cron_restart).
    PM2's saved list keeps them, and is brought up to date first where it does not hold them.
    """

    trouble = ""
    only: set[str] | None = None

    def run(self, check: bool = False) -> Outcome:
        outcome = self.outcome
        wanted = users_of("redis", self.known) if self.only is None else with_dependents(self.only, self.known)
        if not wanted:
            if self.only is not None:
                return outcome
            raise StartError("no component uses Redis; the inventory's depends_on says so")
        members = [component for component in self.pm2 if component.name in wanted]
        if not members:
            outcome.notes.append(f"none of {', '.join(sorted(wanted))} is on this server")
            return outcome
        daemon, sample = self._ask()
        there = [component for component in members if any(app.name == component.app for app in sample.apps) or strays(component, sample)]
        outcome.changed = bool(there)
        if check:
            outcome.actions = {component.name: "would stop" for component in there}
            return outcome
        # With or without its daemon, the unit could bring the services back in the middle of the swap.
        if daemon is None and self.settings.unit:
            self.command(["systemctl", "stop", self.settings.unit], "", self._in_time("stopping the PM2 unit"))
            outcome.notes.append(f"PM2 could not be asked ({self.trouble}), so {self.settings.unit} was stopped as a whole")
        if daemon:
            self._keep_list(daemon, sample.apps)
        for level in reversed(self.levels):
            clearing = [component for component in level if component in members]
            if clearing:
                self._clear(clearing, daemon)
        self._prove(members, {component.name for component in there})
        return outcome

    def _ask(self) -> tuple[Process | None, Sample]:
        """The daemon with its list; without one, or with one that does not answer, what the kernel knows."""
        try:
            daemon = find_daemon(self.settings.home, self.watcher.uid, self.watcher.proc)
            return daemon, self.watcher.sample(self.components)
        except Pm2Error as error:
            self.trouble = str(error)
            return None, self.watcher.kernel_view(self.components, [], 0)

    def _sample(self) -> Sample:
        return self._ask()[1]

    def _keep_list(self, daemon: Process, apps: list[App]) -> None:
        """A reboot, or an operator, brings back from the saved list what is deleted here."""
        path = os.path.join(self.settings.home, "dump.pm2")
        names = {app.name for app in apps}
        if names and not names <= (dumped_names(path) or set()):
            self._finish(self._pm2(daemon, ["save"]), "saving PM2's list")
            if not names <= (dumped_names(path) or set()):
                raise StartError(f"{path} does not hold what is running and could not be saved; nothing was stopped")
            self.outcome.saved = True

    def _prove(self, members: list[Component], stopped: set[str]) -> None:
        """One last look at all of them together: whoever came back in the meantime is named."""
        sample = self._sample()
        for component in members:
            left = [f"PM2 knows {app.name} as {app.status}" for app in sample.apps if app.name == component.app]
            left += [f"process {pid} {why}" for pid, why in sorted(strays(component, sample).items())]
            if component.port is not None and component.port in sample.listeners:
                left.append(f"port {component.port} is listened on")
            if left:
                raise StartError(f"{component.name} is not gone: {'; '.join(left)}")
            port = f", port {component.port} is free" if component.port else ""
            self.outcome.findings[component.name] = Finding(component.name, PASS, f"not known to PM2, no process{port}")
            self.outcome.actions[component.name] = "stopped" if component.name in stopped else "none"
