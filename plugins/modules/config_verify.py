#!/usr/bin/python
# Copyright (c) 2026, Titan DR maintainers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: config_verify
short_description: Tell whether the configuration of a server may be used, and whether its services use it
version_added: "0.3.0"
author: [Titan DR maintainers (@titan-dr)]
description:
  - Checks every file of the configuration in two depths. What it says - strict JSON (no key twice, no NaN, no byte order mark, no number that JavaScript
    would round), its JSON Schema, C(redis.conf) as Redis itself reads it, the ecosystem file as Node.js parses it, units, certificates, owners and modes.
  - What it means - numbers against the last proven revision, environment, exchange addresses against the inventory, ports, placeholders, missing secrets.
  - Earlier versions come from the git history of the configuration. One is proven when it passes these checks itself.
  - Asks the running services which version of their file they have loaded.
  - Finds places, never values. Nothing is changed and no service is started.
options:
  not_before:
    description: Files that were exchanged, each with the time in seconds since the epoch before which nobody who reads it may have started.
    type: dict
    default: {}
  require:
    description:
      - V(known) fails when something could not be found out, V(sound) unless nothing is wrong with the files, V(loaded) unless every process uses them as
        they are besides.
    type: str
    choices: [nothing, known, sound, loaded]
    default: nothing
  timeout:
    description: Seconds for the history, and for the answer of a service.
    type: float
    default: 10
extends_documentation_fragment:
  - titan.disaster_recovery.attributes
  - titan.disaster_recovery.configuration
attributes:
  check_mode:
    support: full
    details: The module only reads, so it does the same in check mode.
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Check the configuration
  titan.disaster_recovery.config_verify:
    configuration: "{{ config_restore_configuration }}"
    require: sound
"""

RETURN = r"""
config:
  description: What was found.
  type: dict
  returned: success
  contains:
    verdict:
      description: One of pass, fail and unknown.
      type: str
    findings:
      description:
        - Each with C(path), C(kind), C(where) (JSON pointer, line and column), C(evidence) and C(severity). V(fatal) - a parser or a service refuses it,
          V(meaning) - it must not be used without a person's approval, V(drift) - it may be used, and is not as in the last proven revision.
      type: list
      elements: dict
    unknown:
      description: What could not be found out.
      type: list
      elements: str
    affected:
      description: Components that read a damaged file, or run with other values than their file holds.
      type: list
      elements: str
    stale:
      description: Why a component runs with other values than its file holds, by its name.
      type: dict
    revision:
      description: The newest revision of the history, with C(label), C(at) and C(age_s); empty without a history.
      type: dict
  sample:
    verdict: fail
    findings:
      - path: /opt/titan/config/brain.config.json
        kind: syntax
        where: line 3, column 1
        evidence: a comma or } is missing
        severity: fatal
    unknown: []
    affected: [titan-brain]
    stale: {}
    revision: {label: revision 0123456789ab (20260101T000000Z-abcdef), at: 1767225600.0, age_s: 86400.0}
titan_dr:
  description: Rows for the ledger.
  type: dict
  returned: always
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.titan.disaster_recovery.plugins.module_utils import _config, _config_history, _config_live, _state
from ansible_collections.titan.disaster_recovery.plugins.module_utils._components import ComponentError
from ansible_collections.titan.disaster_recovery.plugins.module_utils._config_options import CONFIGURATION


def verify(params: dict[str, t.Any]) -> tuple[dict[str, t.Any], list[dict[str, str]], list[str]]:
    """The result, the gates and the notes."""
    raw = params["configuration"]
    settings = _config.parse_settings(raw)
    tools = _config_live.tools(settings)
    wanted = _config_live.wanted(settings.paths)
    revisions, notes = _config_history.read_history(settings.history, settings.repository, wanted, time.time() + params["timeout"])
    proof = _config_history.prove(revisions, settings, tools)
    tree = _config_live.read_tree(settings.paths)
    report = _config_live.check_live(tree, proof.reference(), proof.expected(), settings, tools)
    running = _config_live.look(settings, raw["pm2_home"], min(3.0, params["timeout"]))
    stale = _config_live.stale(running, tree, settings)
    # who reads what is told by the files as they should be: a damaged one names nobody
    files = {**proof.reference(), **{path: data for path, data in _config_live.contents(tree).items() if path not in report.damaged()}}
    names = {*_config.affected(report.damaged(), files, settings), *stale}
    newest = proof.newest
    row = {
        **report.row(),
        "affected": [component.name for component in settings.components if component.name in names],
        "stale": stale,
        "revision": {"label": newest.label, "at": newest.at, "age_s": round(time.time() - newest.at, 1)} if newest else {},
    }
    gates = [{"name": "config_sound", "verdict": report.verdict, "evidence": report.evidence(len(tree))}]
    verdict, evidence = _config_live.loaded_gate(running, tree, settings, params["not_before"])
    gates.append({"name": "config_loaded", "verdict": verdict, "evidence": evidence})
    return row, gates, notes


def stranger(environment_id: str) -> str:
    """Why this is not a server of the environment; empty when it is, or was never claimed."""
    ours, evidence = _state.belongs(environment_id)
    return "" if ours else evidence


def main() -> t.NoReturn:
    module = AnsibleModule(
        argument_spec={
            "configuration": CONFIGURATION,
            "not_before": {"type": "dict", "default": {}},
            "require": {"type": "str", "choices": ["nothing", "known", "sound", "loaded"], "default": "nothing"},
            "timeout": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    require = module.params["require"]
    if why := stranger(module.params["configuration"]["environment_id"]):
        module.fail_json(msg=why, titan_dr={"refused": why, "gates": [{"name": "environment", "verdict": "fail", "evidence": why}]})
    try:
        row, gates, notes = verify(module.params)
    except (_config.ConfigError, ComponentError) as exc:
        module.fail_json(msg=str(exc), titan_dr={"refused": str(exc)} if require in ("nothing", "known") else {})
    if require == "known" and row["unknown"]:
        reason = f"This server's configuration cannot be judged, so nothing could be proven: {'; '.join(row['unknown'])}"
        module.fail_json(msg=reason, config=row, titan_dr={"refused": reason, "notes": notes})
    if require in ("nothing", "known"):
        # what is found before a recovery is its reason, not its failure
        notes += [f"{finding['severity']}: {finding['path']}: {finding['where']}: {finding['evidence']}" for finding in row["findings"]]
        module.exit_json(changed=False, config=row, titan_dr={"notes": notes + list(row["stale"].values())})
    gates = gates if require == "loaded" else gates[:1]
    at = time.time()
    rows: dict[str, t.Any] = {"gates": [{**gate, "at": at} for gate in gates], "notes": notes}
    bad = [f"{gate['name']} is {gate['verdict']}: {gate['evidence']}" for gate in gates if gate["verdict"] != "pass"]
    if bad:
        module.fail_json(msg="; ".join(bad), config=row, titan_dr=rows)
    module.exit_json(changed=False, config=row, titan_dr=rows)


if __name__ == "__main__":
    main()
