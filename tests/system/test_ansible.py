"""Ansible's modules, connection and inventory plugins for LXD, unmodified."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.ansible import Play, inventory, play
from tests.support.daemon import Daemon

# Most of the time is Ansible's own, in many processes.
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MODULES = """
- hosts: localhost
  connection: local
  gather_facts: false
  module_defaults:
    community.general.lxd_project: {url: "{{ lxd_url }}"}
    community.general.lxd_profile: {url: "{{ lxd_url }}"}
    community.general.lxd_container: {url: "{{ lxd_url }}", project: web}
  tasks:
"""
SITE = """
    - name: project
      community.general.lxd_project:
        name: web
        description: for the web
        config: &features
          features.images: "false"
          features.networks: "false"
          features.profiles: "true"
          features.storage.buckets: "true"
          features.storage.volumes: "true"
          limits.containers: "3"
    - name: profile
      community.general.lxd_profile:
        name: small
        project: web
        description: a small one
        config: {limits.memory: 512MiB, user.tier: web}
        devices:
          root: {type: disk, path: /, pool: default}
          # The host's Python, for the modules that run inside.
          usr: {type: disk, source: /usr, path: /usr, readonly: "true"}
    - name: running
      community.general.lxd_container:
        name: one
        state: started
        type: container
        ephemeral: false
        source: {type: image, alias: busybox}
        profiles: [small]
        config: {limits.processes: "500", user.note: a note}
        devices:
          eth0: {type: nic, nictype: p2p, name: eth0}
    - name: stopped
      community.general.lxd_container:
        name: two
        state: stopped
        source: {type: image, alias: busybox}
        profiles: [small]
    - name: absent
      community.general.lxd_container: {name: three, state: absent}
    - name: inventory
      ansible.builtin.add_host:
        name: "{{ item }}"
        groups: instances
        ansible_connection: community.general.lxd
        ansible_lxd_project: web
      loop: [one, two, three]
      changed_when: false

- hosts: two:three
  gather_facts: false
  tasks:
    - name: unreachable
      ansible.builtin.raw: "true"
      ignore_unreachable: true

- hosts: one
  gather_facts: false
  tasks:
    - name: raw
      ansible.builtin.raw: test -e /lib || { ln -s usr/lib /lib; ln -s usr/lib64 /lib64; echo linked; }
      register: raw
      changed_when: raw.stdout != ""
    - name: command
      ansible.builtin.command:
        argv: [sh, -c, hostname >/root/name]
        creates: /root/name
    - name: template
      ansible.builtin.template:
        src: note.j2
        dest: /etc/note
        owner: "1000"
        mode: "0640"
    - name: copy
      ansible.builtin.copy: {src: program, dest: /root/program, mode: "0700"}
    - name: fetch
      ansible.builtin.fetch: {src: /root/program, dest: fetched, flat: true}
"""
CHANGES = """
    - name: config
      community.general.lxd_container:
        name: one
        state: restarted
        force_stop: true
        architecture: x86_64
        config: {limits.processes: "600"}
        devices:
          eth1: {type: nic, nictype: p2p, name: eth1}
    - name: freeze
      community.general.lxd_container: {name: one, state: frozen}
    - name: thaw
      community.general.lxd_container: {name: one, state: started}
    - name: stop
      community.general.lxd_container: {name: one, state: stopped}
    - name: freeze a stopped one
      community.general.lxd_container: {name: two, state: frozen}
    - name: merge
      community.general.lxd_profile:
        name: small
        project: web
        merge_profile: true
        config: {user.more: "1"}
    - name: merge more
      community.general.lxd_project:
        name: web
        merge_project: true
        description: for the net
    - name: delete a frozen one
      community.general.lxd_container: {name: two, state: absent}
    - name: delete a stopped one
      community.general.lxd_container: {name: one, state: absent}
    - name: rename the profile
      community.general.lxd_profile: {name: small, new_name: tiny, project: web}
    - name: delete the profile
      community.general.lxd_profile: {name: tiny, project: web, state: absent}
    - name: rename the project
      community.general.lxd_project: {name: web, new_name: net}
    - name: delete the project
      community.general.lxd_project: {name: net, state: absent}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the plays, with the files that they push."""
    home = tmp_path_factory.mktemp("plays")
    (home / "note.j2").write_text("from {{ inventory_hostname }}: {{ 6 * 7 }}\n")
    (home / "program").write_bytes(bytes(range(256)) * 4000)
    return home


@pytest.fixture(scope="module")
def first(module_daemon: Daemon, busybox: str, home: Path) -> Play:
    """What the first run of `SITE` reported; the last test removes all that it has made."""
    return play(module_daemon, home, MODULES + SITE)


def test_a_first_run_makes_everything(module_daemon: Daemon, first: Play) -> None:
    d = module_daemon
    assert first.actions == {
        "project": ["create"],
        "profile": ["create"],
        "running": ["create", "start"],
        "stopped": ["create"],
        "absent": [],
    }
    modules = ["project", "profile", "running", "stopped"]
    assert first.changed == [*modules, "raw", "command", "template", "copy", "fetch"]
    one, two = d.get("/1.0/instances?recursion=1&project=web&filter=name+ne+three")
    assert (one["status"], one["profiles"], one["config"]["user.note"]) == ("Running", ["small"], "a note")
    assert one["expanded_config"]["limits.memory"] == "512MiB"
    assert two["status"] == "Stopped"


@pytest.mark.long
def test_a_second_run_changes_nothing(module_daemon: Daemon, first: Play, home: Path) -> None:
    second = play(module_daemon, home, MODULES + SITE)
    assert second.changed == []
    assert second.results.keys() == first.results.keys()


def test_the_connection(module_daemon: Daemon, first: Play, home: Path) -> None:
    run = ("--project", "web", "exec", "one", "--")
    assert module_daemon.lxc(*run, "cat", "/root/name").stdout == "one\n"
    assert module_daemon.lxc(*run, "cat", "/etc/note").stdout == "from one: 42\n"
    assert module_daemon.lxc(*run, "stat", "-c", "%a %u", "/etc/note").stdout == "640 1000\n"
    assert (home / "fetched").read_bytes() == (home / "program").read_bytes()
    # The plugin knows these two by the client's messages.
    for host, message in (("two", "instance not running: two"), ("three", "instance not found: three")):
        result = first.results[host, "unreachable"]
        assert (result["unreachable"], message in result["msg"]) == (True, True), result


def test_the_inventory(module_daemon: Daemon, first: Play, home: Path) -> None:
    groups = {
        "small": {"type": "profile", "attribute": "small"},
        "boxes": {"type": "os", "attribute": "busybox"},
        "elsewhere": {"type": "location", "attribute": "elsewhere"},
    }
    listed = inventory(module_daemon, home, project="web", groupby=groups)
    variables = listed["_meta"]["hostvars"]
    assert {name: host["ansible_lxd_state"] for name, host in variables.items()} == {
        "one": "running",
        "two": "stopped",
    }
    assert variables["one"]["ansible_lxd_profile"] == ["small"]
    assert set(listed["small"]["hosts"]) == set(listed["boxes"]["hosts"]) == {"one", "two"}
    assert "elsewhere" not in listed


@pytest.mark.long
def test_changes_and_the_end(module_daemon: Daemon, first: Play, home: Path) -> None:
    changes = play(module_daemon, home, MODULES + CHANGES)
    assert changes.actions == {
        "config": ["apply_instance_configs", "restart"],
        "freeze": ["freeze"],
        "thaw": ["unfreeze"],
        "stop": ["stop"],
        "freeze a stopped one": ["start", "freeze"],
        "merge": ["apply_profile_configs"],
        "merge more": ["apply_projects_configs"],
        "delete a frozen one": ["unfreeze", "stop", "delete"],
        "delete a stopped one": ["delete"],
        "rename the profile": ["rename"],
        "delete the profile": ["delete"],
        "rename the project": ["rename"],
        "delete the project": ["delete"],
    }
    assert module_daemon.get("/1.0/projects") == ["/1.0/projects/default"]
