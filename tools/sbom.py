"""Prints a software bill of materials (CycloneDX 1.5, JSON) of what a program of the workspace is built from, out of
Cargo.lock: `python3 tools/sbom.py errand-cli > sbom.json`. Build dependencies are left out, they are in no program."""

import hashlib
import json
import subprocess
import sys


def metadata():
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def reachable(nodes, root):
    """The packages that end up in the program, by normal dependencies."""
    found, left = set(), [root]
    while left:
        package = left.pop()
        if package in found:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                left.append(dependency["pkg"])
    return found


def component(package, checksums):
    name, version = package["name"], package["version"]
    entry = {
        "type": "library",
        "bom-ref": f"pkg:cargo/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:cargo/{name}@{version}",
        "licenses": [{"expression": (package["license"] or "NOASSERTION").replace("/", " OR ")}],
    }
    if checksum := checksums.get((name, version)):
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return entry


def checksums():
    """The registry's checksums, which Cargo.lock has."""
    found, name, version = {}, None, None
    with open("Cargo.lock", encoding="utf-8") as lock:
        for line in lock:
            key, _, value = line.strip().partition(" = ")
            value = value.strip('"')
            if key == "name":
                name = value
            elif key == "version":
                version = value
            elif key == "checksum":
                found[name, version] = value
    return found


def main():
    wanted = sys.argv[1] if len(sys.argv) > 1 else "errand-cli"
    all_of = metadata()
    packages = {package["id"]: package for package in all_of["packages"]}
    nodes = {node["id"]: node for node in all_of["resolve"]["nodes"]}
    root = next(package for package in all_of["packages"] if package["name"] == wanted)
    sums = checksums()
    within = sorted(reachable(nodes, root["id"]) - {root["id"]}, key=lambda one: (packages[one]["name"], one))
    with open("Cargo.lock", "rb") as lock:
        serial = hashlib.sha256(lock.read() + wanted.encode()).hexdigest()
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same lock file gives the same document.
        "serialNumber": f"urn:uuid:{serial[:8]}-{serial[8:12]}-5{serial[13:16]}-8{serial[17:20]}-{serial[20:32]}",
        "version": 1,
        "metadata": {"component": component(root, sums) | {"type": "application"}},
        "components": [component(packages[one], sums) for one in within],
    }
    json.dump(bom, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
