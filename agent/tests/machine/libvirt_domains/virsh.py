#!/usr/bin/env python3
"""What VM-MIB should say of the domains of a libvirt, by what virsh, sysfs and procfs say of them.

    virsh.py URI PIDS

PIDS is libvirt's directory of .pid files. Prints JSON: by UUID, the columns of vmTable, the rows of vmCpuTable by
vCPU, of vmStorageTable by the name of the disk in the guest, of vmNetworkTable by address. A text is a string, a
number a number; null is a value that cannot be compared. Knows nothing of the agent.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree as tree

URI, PIDS = sys.argv[1:]
LIBOSINFO = "{http://libosinfo.org/xmlns/libvirt/domain/1.0}"
ADMIN = {"running": 1, "suspended": 2, "paused": 3, "shutdown": 4}
OPER = {"running": 4, "suspended": 6, "paused": 8, "shutdown": 11, "crashed": 12}
UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


SHELL = subprocess.Popen(
    ["virsh", "-q", "-c", URI], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)


def virsh(*arguments):
    """What one virsh prints for a command: a process for each would take most of the time. Nothing for one that fails."""
    # The shell repeats each line that it reads. Without the quotes, only the output has the mark.
    SHELL.stdin.write(shlex.join(arguments) + '\necho "<e"nd>\n')
    SHELL.stdin.flush()
    said = ""
    while not said.endswith("<end>"):
        read = SHELL.stdout.read(1)
        if not read:
            raise SystemExit(f"virsh ended after {said}")
        said += read
    # Between the prompt with the command, and the prompt with the mark.
    return said.partition("\n")[2].rpartition("virsh # ")[0]


def pairs(text, separator=":"):
    split = (line.split(separator, 1) for line in text.splitlines() if separator in line)
    return {key.strip(): value.strip() for key, value in split}


def octets(element):
    return int(element.text) * UNITS[element.get("unit", "KiB")]


def unit(*sizes):
    largest = max([size for size in sizes if size is not None] or [0])
    return next((u for u in (1 << 10, 1 << 20, 1 << 30) if largest // u < 1 << 31), 1 << 30)


def steps(size, of):
    return -1 if size is None else size // of


def cut(text):
    return text.encode()[:255].decode(errors="ignore")


def states(said, saved):
    """domstate --reason, such as `shut off (crashed)`, as vmAdminState and vmOperState."""
    state, reason = re.fullmatch(r"(.+?) \((.+)\)", said.strip()).groups()
    if state == "shut off":
        if saved:
            return ADMIN["suspended"], OPER["suspended"]
        return ADMIN["shutdown"], OPER["crashed" if reason == "crashed" else "shutdown"]
    if state == "crashed" or (state, reason) == ("paused", "crashed"):
        return ADMIN["running"], OPER["crashed"]
    return {
        "running": (ADMIN["running"], OPER["running"]),
        "paused": (ADMIN["paused"], OPER["paused"]),
    }[state]


def number_of(interface):
    try:
        with open(f"/sys/class/net/{interface}/ifindex") as file:
            return int(file.read())
    except OSError:
        return 0


def is_physical(interface):
    return os.path.exists(f"/sys/class/net/{interface}/device")


def lower(interface):
    """What lies below a macvlan, by its link."""
    with open(f"/sys/class/net/{interface}/iflink") as file:
        link = int(file.read())
    return next((name for name in os.listdir("/sys/class/net") if number_of(name) == link), None)


def ports(bridge):
    return sorted(os.listdir(f"/sys/class/net/{bridge}/brif"))


def disk(uuid, node, is_active, io):
    source = node.find("source")
    get = (lambda name: source.get(name, "")) if source is not None else (lambda name: "")
    driver = node.find("driver")
    format = driver.get("type", "raw") if driver is not None else "raw"
    target = node.find("target")
    device = node.get("device", "disk")
    kind = node.get("type")
    if kind == "block":
        kind, text, where = 3, format, get("dev")
    elif kind == "network":
        hosts = [
            ":".join(filter(None, (host.get("name"), host.get("port")))) or host.get("socket")
            for host in source.findall("host")
        ]
        kind, text, where = 6, get("protocol"), f"{get('protocol')}:{get('name')}@{','.join(hosts)}"
    elif get("file"):
        kind, text, where = 4 if format == "raw" else 5, format, get("file")
    else:
        kind, text, where = 1, "", ""
    is_read_only = node.find("readonly") is not None or device == "cdrom"
    capacity = allocation = None
    if where or device == "disk":
        try:
            info = pairs(virsh("domblkinfo", uuid, target.get("dev")))
            capacity, allocation = int(info["Capacity"]), int(info["Allocation"])
        except (KeyError, ValueError):
            pass
    if kind in (3, 4):
        allocation = capacity
    of = unit(capacity, allocation)
    row = {
        3: 0,
        4: kind,
        5: text,
        6: cut(where),
        7: 3 if is_read_only else 2,
        8: {"disk": 3, "lun": 3, "cdrom": 4, "floppy": 5}[device],
        9: target.get("bus"),
        10: of,
        11: steps(capacity, of),
        12: steps(allocation, of),
    }
    names = ["rd.reqs", "wr.reqs", "rd.bytes", "wr.bytes", "rd.times", "wr.times"]
    for column, name in enumerate(names, 13):
        count = int(io[name]) if name in io else None if is_active else 0
        row[column] = count // 1000 if count is not None and name.endswith("times") else count
    return row


def nic(node, is_active):
    target = node.find("target")
    device = target.get("dev") if is_active and target is not None else None
    parent = 0
    if device and node.get("type") == "bridge":
        below = (lower(port) for port in ports(node.find("source").get("bridge")))
        parent = next((number_of(name) for name in below if name and is_physical(name)), 0)
    elif device and node.get("type") == "direct":
        parent = number_of(node.find("source").get("dev"))
    return {
        2: number_of(device) if device else 0,
        3: parent,
        4: node.find("model").get("type"),
        5: node.find("mac").get("address"),
    }


def domain(uuid):
    xml = tree.fromstring(virsh("dumpxml", uuid))
    info = pairs(virsh("dominfo", uuid))
    stats = pairs(virsh("domstats", "--block", "--cpu-total", "--vcpu", uuid), "=")
    is_active = info["Id"] != "-"
    admin, oper = states(virsh("domstate", uuid, "--reason"), info["Managed save"] == "yes")
    os_id = xml.find(f"metadata/{LIBOSINFO}libosinfo/{LIBOSINFO}os")
    vcpu = xml.find("vcpu")
    current = int(vcpu.get("current", vcpu.text))
    memory = octets(xml.find("memory"))
    cur_mem = octets(xml.find("currentMemory"))
    slots = xml.find("maxMemory")
    max_mem = octets(slots) if slots is not None else memory
    of = unit(cur_mem, max_mem)
    # Of a domain that is saved, the time goes on; when it was started, libvirt does not tell.
    up = None if oper == OPER["suspended"] else 0
    if is_active:
        with open(os.path.join(PIDS, f"{xml.findtext('name')}.pid")) as file:
            pid = file.read().strip()
        with open(f"/proc/{pid}/stat") as file:
            started = int(file.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        up = int((time.clock_gettime(time.CLOCK_BOOTTIME) - started) * 100)
    vm = {
        2: cut(virsh("domname", uuid).rstrip("\n")),
        3: uuid,
        4: cut(os_id.get("id")) if os_id is not None else "",
        5: admin,
        6: oper,
        7: {"enable": 2, "disable": 3}[info["Autostart"]],
        8: {"yes": 2, "no": 3}[info["Persistent"]],
        9: int(info["CPU(s)"]),
        10: -1,
        11: int(vcpu.text),
        12: of,
        13: steps(cur_mem, of),
        14: -1,
        15: steps(max_mem, of),
        16: up,
        # Of a domain that is off, libvirt tells the time of its own process.
        17: int(stats["cpu.time"]) // 1000 if is_active else 0,
    }
    # vCPUs: time in µs in libvirt's steps of 10 ms, and which CPUs of the host each may use.
    cpus = {number: {"time": 0, "affinity": None} for number in range(current)}
    if is_active:
        for block in virsh("vcpuinfo", uuid).strip().split("\n\n"):
            told = pairs(block)
            number = int(told["VCPU"])
            cpus[number] = {
                "time": int(stats[f"vcpu.{number}.time"]) // 1000,
                "affinity": [2 if sign == "-" else 1 for sign in told["CPU Affinity"]],
            }
    names = {value: key.split(".")[1] for key, value in stats.items() if key.endswith(".name")}
    disks = {}
    for node in xml.findall("devices/disk"):
        target = node.find("target").get("dev")
        prefix = f"block.{names.get(target)}."
        io = {key[len(prefix) :]: value for key, value in stats.items() if key.startswith(prefix)}
        disks[target] = disk(uuid, node, is_active, io)
    nics = {
        node.find("mac").get("address"): nic(node, is_active)
        for node in xml.findall("devices/interface")
    }
    return {"vm": vm, "cpus": cpus, "disks": disks, "nics": nics}


print(json.dumps({uuid: domain(uuid) for uuid in virsh("list", "--all", "--uuid").split()}))
