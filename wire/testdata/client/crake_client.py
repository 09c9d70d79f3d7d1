#!/usr/bin/env python3
"""A client of a Crake cluster, written from wire/PROTOCOL.md and wire/MESSAGES.md alone, with Python's standard library.

It reads a filesystem without a mount: it registers at mgmt as the frontend of a slot, finds the owner of each bucket in the
cluster map, asks computes for names, attributes and extents, reads blocks from drives, and verifies every checksum. Numbers in
parentheses are chapters of PROTOCOL.md. It is meant to be read: but for heartbeats it does one thing at a time, and it has no cache.

    crake_client.py --mgmt unix:DIR/run/mgmt.sock map
    crake_client.py --mgmt unix:DIR/run/mgmt.sock --slot frontend1 --pid PID [--identity FILE] tree
"""

import argparse
import hashlib
import json
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time

# ---- xxhash64, which all checksums are -------------------------------------------------------------------------------

MASK = (1 << 64) - 1
P1, P2, P3, P4, P5 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def rotate(x, n):
    return (x << n | x >> 64 - n) & MASK


def xx_round(acc, lane):
    return rotate((acc + lane * P2) & MASK, 31) * P1 & MASK


def xxhash64(b):
    n = len(b)
    at = n & ~31
    if n >= 32:
        v = [P1 + P2 & MASK, P2, 0, -P1 & MASK]
        for lanes in struct.iter_unpack("<4Q", b[:at]):
            v = [xx_round(acc, lane) for acc, lane in zip(v, lanes)]
        h = rotate(v[0], 1) + rotate(v[1], 7) + rotate(v[2], 12) + rotate(v[3], 18) & MASK
        for acc in v:
            h = ((h ^ xx_round(0, acc)) * P1 + P4) & MASK
    else:
        h = P5
    h = h + n & MASK
    while at + 8 <= n:
        h = (rotate(h ^ xx_round(0, struct.unpack_from("<Q", b, at)[0]), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= n:
        h = (rotate(h ^ struct.unpack_from("<I", b, at)[0] * P1 & MASK, 23) * P2 + P3) & MASK
        at += 4
    for byte in b[at:]:
        h = rotate(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


# ---- messages (7, MESSAGES.md): the fields that this client needs, in order ----------------------------------------------

INTS = {"bool": "<B", "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q"}

# A message may be given without its last fields: the receiver takes them for zero. In the same way fields that the sender has
# in excess are skipped: so only what is used stands here.
MESSAGES = {
    "ErrorBody": "Op:str ID:str Text:str",
    "RegisterReq": "Proc:u32 Role:u8 PID:u32 Name:str Version:str Addrs:[str]",
    "RegisterResp": "Incarnation:u64 Session:u64 Map:ClusterMap",
    "HeartbeatReq": "Proc:u32 Incarnation:u64 Session:u64 Generation:u64 RSSBytes:u64 Ready:bool",
    "HeartbeatResp": "Generation:u64 LeaseMs:u32",
    "GoodbyeReq": "Proc:u32 Incarnation:u64",
    "Empty": "",
    "WatchMapReq": "After:u64",
    "WatchMapResp": "Map:ClusterMap",
    "ClusterMap": "Generation:u64 Cluster:b16 K:u8 M:u8 Buckets:u32 LeaseMs:u32 Name:str Processes:[ProcInfo] Drives:[DriveInfo] "
    "PGs:[PGInfo] Owners:[BucketOwner] FSs:[FSInfo]",
    "ProcInfo": "ID:u32 Incarnation:u64 Server:u32 Role:u8 State:u8 PID:u32 Name:str Version:str Addrs:[str]",
    "DriveInfo": "ID:u32 Proc:u32 Server:u32 Domain:u32 State:u8",
    "PGInfo": "ID:u32",
    "BucketOwner": "Proc:u32 Epoch:u64",
    "FSInfo": "ID:u32 Root:u64 Deleting:bool Name:str",
    "LookupReq": "Session:u64 Parent:u64 Name:str",
    "EntryResp": "Ino:u64 Type:u32",
    "GetAttrReq": "Session:u64 Ino:u64",
    "AttrResp": "Attr:Attr",
    "Attr": "Ino:u64 Mode:u32 Nlink:u32 UID:u32 GID:u32 Rdev:u32 Size:u64 Blocks:u64 Atime:i64 Mtime:i64 Ctime:i64",
    "ReadDirReq": "Session:u64 Ino:u64 Cookie:u64 Limit:u32",
    "ReadDirResp": "EOF:bool Parent:u64 Entries:[DirEntry]",
    "DirEntry": "Cookie:u64 Ino:u64 Type:u32 HasAttr:bool Name:raw",
    "ReadLinkReq": "Session:u64 Ino:u64",
    "ReadLinkResp": "Target:raw",
    "ExtentsReq": "Session:u64 Ino:u64 Off:u64 Len:u64",
    "ExtentsResp": "HasInline:bool Inline:raw Locations:[Location] Extents:[Extent]",
    "Location": "Kind:u8 K:u8 M:u8 Degraded:bool ID:StripID Blocks:u32 Drives:[u32]",
    "StripID": "Hi:u64 Lo:u64",
    "Extent": "FileOff:u64 Len:u64 Loc:u32 Block:u32 Sums:[u64]",
    "ReadReq": "Drive:u32 Ranges:[ReadRange]",
    "ReadRange": "ID:StripID Offset:u64 Len:u32",
    "ReadResp": "Status:[u16]",
}
FIELDS = {name: [f.split(":") for f in text.split()] for name, text in MESSAGES.items()}
FIXED = {"StripID"}  # no length before it


def encode(name, values):
    return b"".join(encode_field(kind, values.get(field)) for field, kind in FIELDS[name])


def encode_field(kind, v):
    if kind in INTS:
        return struct.pack(INTS[kind], v or 0)
    if kind == "str":
        v, kind = (v or "").encode(), "raw"
    if kind == "raw":
        return struct.pack("<I", len(v or b"")) + (v or b"")
    if kind.startswith("["):
        return struct.pack("<I", len(v or [])) + b"".join(encode_field(kind[1:-1], e) for e in v or [])
    body = encode(kind, v or {})
    return body if kind in FIXED else struct.pack("<I", len(body)) + body


class Decoder:
    """Reads fields from a message. At its end every further field is zero; an end inside a field is an error."""

    def __init__(self, b):
        self.b, self.at = b, 0

    def take(self, n):
        if self.at == len(self.b):
            return None
        if self.at + n > len(self.b):
            raise Refused("a message that ends inside a field")
        self.at += n
        return self.b[self.at - n : self.at]

    def number(self, form):
        b = self.take(struct.calcsize(form))
        return 0 if b is None else struct.unpack(form, b)[0]

    def message(self, name):
        return {field: self.field(kind) for field, kind in FIELDS[name]}

    def field(self, kind):
        if kind in INTS:
            return self.number(INTS[kind])
        if kind == "b16":
            return self.take(16) or bytes(16)
        if kind in FIXED:
            return self.message(kind)
        n = self.number("<I")
        if kind.startswith("["):
            if n > len(self.b) - self.at:  # each element takes a byte or more
                raise Refused("a list longer than the message")
            return [self.field(kind[1:-1]) for _ in range(n)]
        body = (self.take(n) if n else b"") or b""
        if len(body) != n:
            raise Refused("a message that ends before a field")
        if kind == "str":
            return body.decode(errors="replace")
        return body if kind == "raw" else Decoder(body).message(kind)


# ---- the handshake (2) -----------------------------------------------------------------------------------------------

ROLE_FRONTEND, ROLE_CLIENT = 3, 5
ROLE_NAMES = {1: "drive", 2: "compute", 3: "frontend", 4: "mgmt", 5: "client"}
FEATURE_PROOF = 1 << 1
HELLO = struct.Struct("<8sHBBI16sHHIQQ16s48s")  # and the checksum


class Refused(Exception):
    """The peer said no, or said what makes no sense. kind is the error kind (5)."""

    def __init__(self, text, kind=0):
        super().__init__(text)
        self.kind = kind


class Self:
    """Who this process is."""

    def __init__(self, role=ROLE_CLIENT, proc=0, cluster=bytes(16), identity=None):
        self.role, self.proc, self.cluster, self.identity = role, proc, cluster, identity


def hello_of(me):
    features = FEATURE_PROOF if me.identity else 0
    b = HELLO.pack(b"CRAKEHLO", 0, me.role, 0, me.proc, me.cluster, 1, 1, 64, 1 << 20, features, os.urandom(16), b"crake_client.py")
    return b + struct.pack("<Q", xxhash64(b))


def shake(sock, me):
    """Exchanges hellos, and proofs where both sides can."""
    mine = hello_of(me)
    sock.sendall(mine)
    theirs = receive(sock, 128)
    magic, status, role, _, proc, cluster, lowest, highest, _, _, features, _, software = HELLO.unpack(theirs[:120])
    if magic != b"CRAKEHLO" or struct.unpack("<Q", theirs[120:])[0] != xxhash64(theirs[:120]):
        raise Refused("the peer does not speak this protocol")
    if status != 0:
        raise Refused(f"{ROLE_NAMES.get(role)} {proc} refuses the connection", status)
    if not lowest <= 1 <= highest:
        raise Refused(f"the peer ({software.rstrip(bytes(1)).decode()}) speaks versions {lowest} to {highest}, this client 1")
    if me.cluster != bytes(16) and cluster != me.cluster:
        raise Refused("the peer is of another cluster")
    if me.identity and features & FEATURE_PROOF:
        prove(sock, me.identity, mine, theirs, f"crake://{cluster.hex()}/{ROLE_NAMES.get(role)}/{proc}")
    elif me.identity:
        raise Refused("the peer cannot prove who it is")


# ---- the proof (2.1). Python has no Ed25519, so openssl makes and checks signatures --------------------------------------

PROOF = struct.Struct("<8sHHHH")


def prove(sock, identity, mine, theirs, who):
    """The dialler's half: its proof, the listener's, and the verdict on that."""
    said = mine + theirs
    send_proof(sock, identity.certificate, identity.sign(b"crake proof v1\0" + said))
    certificate, signature = receive_proof(sock)
    try:
        identity.verify(certificate, signature, b"crake proof v1\1" + said, who)
    except Refused as e:
        send_proof(sock, status=38, text=str(e))
        raise
    send_proof(sock)


def send_proof(sock, certificate=b"", signature=b"", status=0, text=""):
    text = text.encode()
    sock.sendall(PROOF.pack(b"CRAKEPRF", status, len(certificate), len(signature), len(text)) + certificate + signature + text)


def receive_proof(sock):
    magic, status, cert, sig, text = PROOF.unpack(receive(sock, PROOF.size))
    if magic != b"CRAKEPRF":
        raise Refused("no proof")
    body = receive(sock, cert + sig + text)
    if status != 0:
        raise Refused("refused: " + body[cert + sig :].decode(errors="replace"), status)
    return body[:cert], body[cert : cert + sig]


class Identity:
    """The file that mgmt gives to a process: its certificate, its key and the certificate of the cluster's CA, in PEM."""

    def __init__(self, path):
        with open(path) as f:
            blocks = re.findall(r"-----BEGIN .*?-----END [A-Z ]+-----\n", f.read(), re.S)
        own, self.key, self.ca = blocks
        self.certificate = self.openssl(["x509", "-outform", "DER", "-in", own])

    def openssl(self, args, ok_needed=True):
        """Runs openssl. An argument of bytes, or of PEM, is put into a file, and that is named instead."""
        with tempfile.TemporaryDirectory() as folder:
            line = ["openssl"]
            for i, a in enumerate(args):
                if isinstance(a, bytes) or a.startswith("-----BEGIN"):
                    path = os.path.join(folder, str(i))
                    with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as f:
                        f.write(a if isinstance(a, bytes) else a.encode())
                    a = path
                line.append(a)
            done = subprocess.run(line, capture_output=True)
        if done.returncode != 0:
            raise Refused(f"openssl {args[0]}: {(done.stderr + done.stdout).decode(errors='replace').strip()}")
        return done.stdout

    def sign(self, message):
        return self.openssl(["pkeyutl", "-sign", "-rawin", "-inkey", self.key, "-in", message])

    def verify(self, certificate, signature, message, who):
        """The certificate must be the CA's, name whom the hello named, and have made the signature."""
        pem = self.openssl(["x509", "-inform", "DER", "-in", certificate]).decode()
        self.openssl(["verify", "-CAfile", self.ca, pem])
        names = self.openssl(["x509", "-noout", "-ext", "subjectAltName", "-in", pem]).decode()
        if "URI:" + who not in names.split():
            raise Refused(f"the peer says that it is {who}, its certificate is of {names}")
        public = self.openssl(["x509", "-noout", "-pubkey", "-in", pem])
        self.openssl(["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", public, "-sigfile", signature, "-in", message])


# ---- frames and requests (4) -----------------------------------------------------------------------------------------

HEADER = struct.Struct("<IBBHQQQIIIHHQ")  # and the checksum
MAGIC = 0x314B5243
REQUEST, RESPONSE, CANCEL, CREDIT = 1, 2, 4, 5
KIND_MOVED, KIND_VERSION = 6, 12
RETRY = {4, 6, 10, 29, 30, 32, 35}  # stale epoch, moved, unavailable, timeout, lost, stale generation, shutdown (5)


def receive(sock, n):
    parts = []
    while n > 0:
        b = sock.recv(min(n, 1 << 20))
        if not b:
            raise Refused("the peer closed the connection", 30)
        parts.append(b)
        n -= len(b)
    return b"".join(parts)


def frame(kind, method, request_id, meta, epoch=0, generation=0, deadline_ms=0, status=0):
    h = HEADER.pack(MAGIC, kind, 0, method, request_id, epoch, generation, len(meta), 0, deadline_ms, status, 0, 0)
    return h + struct.pack("<Q", xxhash64(h) * 0x9E3779B97F4A7C15 & MASK ^ xxhash64(meta)) + meta


class Connection:
    """A connection on which this client asks one request at a time."""

    def __init__(self, address, me):
        scheme, _, rest = address.partition(":")
        if scheme == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(10)
            self.sock.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), 10)
        shake(self.sock, me)
        self.last_id = 0

    def ask(self, method, name, values, answer, epoch=0, generation=0):
        """Gives the answer's message and data. An error that the peer answers is raised."""
        self.last_id += 1
        self.sock.sendall(frame(REQUEST, method, self.last_id, encode(name, values), epoch, generation, deadline_ms=10000))
        while True:
            h, meta, data = self.receive_frame()
            if h["kind"] == REQUEST:  # a recall of a lease; this client takes none, so nobody should ask
                self.sock.sendall(frame(RESPONSE, h["method"], h["id"], encode("ErrorBody", {"Text": "unknown method"}), status=KIND_VERSION))
            elif h["kind"] == RESPONSE and h["id"] == self.last_id:
                break
        if h["status"] != 0:
            body = Decoder(meta).message("ErrorBody")
            raise Refused(f"{body['Op']} {body['ID']}: error {h['status']}: {body['Text']}", h["status"])
        return Decoder(meta).message(answer), data

    def receive_frame(self):
        head = receive(self.sock, 64)
        magic, kind, _, method, rid, _, _, meta_bytes, data_bytes, _, status, _, _ = HEADER.unpack(head[:56])
        if magic != MAGIC or meta_bytes > 8 << 20 or data_bytes > 8 << 20:
            raise Refused("no frame")
        meta = receive(self.sock, meta_bytes)
        want = xxhash64(head[:56]) * 0x9E3779B97F4A7C15 & MASK ^ xxhash64(meta)
        if struct.unpack("<Q", head[56:])[0] != want:
            raise Refused("a frame with a wrong checksum")
        return {"kind": kind, "method": method, "id": rid, "status": status}, meta, receive(self.sock, data_bytes)


# ---- the cluster (8) -------------------------------------------------------------------------------------------------

BLOCK, REGION = 4096, 4 << 20
DRIVE_UP = 1
STRIPE, SEGMENT = 1, 2
READ, LOOKUP, GET_ATTR, READ_DIR, READ_LINK, EXTENTS = 0x0104, 0x0201, 0x0202, 0x0208, 0x0209, 0x020C
REGISTER, HEARTBEAT, WATCH_MAP, GOODBYE = 0x0501, 0x0502, 0x0503, 0x0506


class Cluster:
    """Finds who answers, keeps the session alive, and asks again when an owner has moved."""

    def __init__(self, mgmt, identity=None):
        """Reads the map as a tool, which needs no slot and no proof."""
        self.mgmt_address, self.identity = mgmt, identity
        self.connections, self.session, self.me = {}, 0, Self()
        mgmt = Connection(mgmt, self.me)
        self.map = mgmt.ask(WATCH_MAP, "WatchMapReq", {}, "WatchMapResp")[0]["Map"]
        mgmt.sock.close()

    def register(self, slot, pid):
        """Becomes the process of a slot, a frontend: that gives a session, without which computes answer nobody."""
        proc = next((p for p in self.map["Processes"] if p["Name"] == slot), None)
        if proc is None:
            raise Refused(f"the map has no process {slot}")
        self.me = Self(ROLE_FRONTEND, proc["ID"], self.map["Cluster"], self.identity)
        self.mgmt = Connection(self.mgmt_address, self.me)
        values = {"Proc": proc["ID"], "Role": ROLE_FRONTEND, "PID": pid, "Name": slot, "Version": "crake_client.py"}
        got, _ = self.mgmt.ask(REGISTER, "RegisterReq", values, "RegisterResp")
        self.incarnation, self.session, self.map = got["Incarnation"], got["Session"], got["Map"]
        self.leaving = threading.Event()
        self.heart = threading.Thread(target=self.beat, args=(Connection(self.mgmt_address, self.me),), daemon=True)
        self.heart.start()

    def beat(self, mgmt):
        """Keeps the session alive, whatever else this client is busy with: it ends when mgmt hears nothing for LeaseMs."""
        try:
            while not self.leaving.wait(self.map["LeaseMs"] / 8000):
                values = {"Proc": self.me.proc, "Incarnation": self.incarnation, "Session": self.session, "Generation": self.map["Generation"], "Ready": True}
                mgmt.ask(HEARTBEAT, "HeartbeatReq", values, "HeartbeatResp")
        except (Refused, OSError) as e:
            print(f"crake_client: no heartbeat any more: {e}", file=sys.stderr)  # computes will refuse the session

    def goodbye(self):
        self.leaving.set()
        self.heart.join()
        self.mgmt.ask(GOODBYE, "GoodbyeReq", {"Proc": self.me.proc, "Incarnation": self.incarnation}, "Empty")

    def refresh(self):
        self.map = self.mgmt.ask(WATCH_MAP, "WatchMapReq", {}, "WatchMapResp")[0]["Map"]

    def connection(self, proc_id):
        proc = next((p for p in self.map["Processes"] if p["ID"] == proc_id), None)
        if proc is None or not proc["Addrs"]:
            raise Refused(f"process {proc_id} is not there", 10)
        key = (proc_id, proc["Incarnation"])
        if key not in self.connections:
            try:
                self.connections[key] = Connection(proc["Addrs"][0], self.me)
            except OSError as e:
                raise Refused(f"{proc['Name']}: {e}", 10) from e
        return key, self.connections[key]

    def retrying(self, once):
        """Calls once until it gives something, for 30 s at most, with the newest map each time."""
        end = time.monotonic() + 30
        while True:
            try:
                return once()
            except Refused as e:
                if e.kind not in RETRY or time.monotonic() > end:
                    raise
            time.sleep(0.1)
            self.refresh()

    def bucket(self, bucket, method, name, values, answer):
        """Asks the owner of a bucket. The header names the epoch under which we believe it to own it."""

        def once():
            owner = self.map["Owners"][bucket]
            key, conn = self.connection(owner["Proc"])
            try:
                return conn.ask(method, name, dict(values, Session=self.session), answer, owner["Epoch"], self.map["Generation"])[0]
            except (OSError, Refused) as e:
                if isinstance(e, OSError) or e.kind == 30:
                    self.connections.pop(key, None)
                    raise Refused(str(e), 30) from e
                raise

        return self.retrying(once)

    def drive(self, drive, ranges):
        """Reads ranges from a drive: a list of the bytes of each."""

        def once():
            info = next(d for d in self.map["Drives"] if d["ID"] == drive)
            if info["State"] != DRIVE_UP:
                raise Refused(f"drive {drive} is away", 9)  # no reason to wait: others have what it has
            _, conn = self.connection(info["Proc"])
            resp, data = conn.ask(READ, "ReadReq", {"Drive": drive, "Ranges": ranges}, "ReadResp", generation=self.map["Generation"])
            out, at = [], 0
            for r, status in zip(ranges, resp["Status"], strict=True):
                if status != 0:
                    raise Refused(f"drive {drive}, strip {r['ID']}: error {status}", status)
                out.append(data[at : at + r["Len"]])
                at += r["Len"]
            return out

        return self.retrying(once)

    # ---- names and attributes

    def get_attr(self, ino):
        return self.bucket(ino >> 48, GET_ATTR, "GetAttrReq", {"Ino": ino}, "AttrResp")["Attr"]

    def lookup(self, parent, name):
        return self.bucket(parent >> 48, LOOKUP, "LookupReq", {"Parent": parent, "Name": name}, "EntryResp")["Ino"]

    def read_dir(self, ino):
        cookie = 0
        while True:
            got = self.bucket(ino >> 48, READ_DIR, "ReadDirReq", {"Ino": ino, "Cookie": cookie, "Limit": 100}, "ReadDirResp")
            yield from got["Entries"]
            if got["EOF"]:
                return
            cookie = got["Entries"][-1]["Cookie"]

    def read_link(self, ino):
        return self.bucket(ino >> 48, READ_LINK, "ReadLinkReq", {"Ino": ino}, "ReadLinkResp")["Target"]

    # ---- data (9)

    def region_bucket(self, ino, region):
        """The bucket that maps a region of a file: the first one is the inode's, the others are spread by a hash."""
        if region == 0:
            return ino >> 48
        return xxhash64(struct.pack("<QQ", ino, region)) % self.map["Buckets"]

    def read_file(self, ino, size):
        out = bytearray(size)  # what no extent covers is zeros
        for begin in range(0, size, REGION):
            want = {"Ino": ino, "Off": begin, "Len": REGION}
            got = self.bucket(self.region_bucket(ino, begin // REGION), EXTENTS, "ExtentsReq", want, "ExtentsResp")
            if got["HasInline"]:
                out[: len(got["Inline"])] = got["Inline"]
                break
            for extent in got["Extents"]:
                data = self.read_extent(got["Locations"][extent["Loc"]], extent)
                end = min(extent["FileOff"] + extent["Len"], size)
                out[extent["FileOff"] : end] = data[: end - extent["FileOff"]]
        return bytes(out)

    def read_extent(self, loc, extent):
        """Reads the blocks of an extent, one run of blocks on one strip after the other, and verifies each."""
        out, first, blocks = [], extent["Block"], len(extent["Sums"])
        rows = -(-loc["Blocks"] // max(loc["K"], 1))  # of a parity strip; a data strip holds as many blocks, the last ones fewer
        while len(out) < blocks:
            block = first + len(out)
            left = blocks - len(out)
            pos, row, run = (0, block, left) if loc["Kind"] == SEGMENT else (block // rows, block % rows, min(left, rows - block % rows))
            run = min(run, 256)
            sums = extent["Sums"][len(out) : len(out) + run]
            out += self.read_run(loc, pos, row, sums)
        return b"".join(out)

    def read_run(self, loc, pos, row, sums):
        """Reads blocks from the strip or replica where they lie, or, if that fails, from others."""
        try:
            return verified(self.read_strip(loc, pos, row, len(sums)), sums)
        except Refused as why:
            if loc["Kind"] == SEGMENT:
                others = [lambda p=p: self.read_strip(loc, p, row, len(sums)) for p in range(1, len(loc["Drives"]))]
            else:
                others = [lambda: self.rebuild(loc, pos, row, len(sums))]
            for other in others:
                try:
                    return verified(other(), sums)
                except Refused as e:
                    why = e
            raise why

    def read_strip(self, loc, pos, row, run):
        """Reads blocks of the strip or replica at a position."""
        strip = {"Hi": loc["ID"]["Hi"] & ~(63 << 38) | pos << 38, "Lo": loc["ID"]["Lo"]}
        (data,) = self.drive(loc["Drives"][pos], [{"ID": strip, "Offset": row * BLOCK, "Len": run * BLOCK}])
        return [data[i * BLOCK : (i + 1) * BLOCK] for i in range(run)]

    def rebuild(self, loc, lost, row, run):
        """Computes blocks of a data strip from those of K other strips, by the code's matrix."""
        k, n = loc["K"], loc["K"] + loc["M"]
        rows = -(-loc["Blocks"] // k)
        have = {}
        for pos in range(n):
            if pos == lost or len(have) == k:
                continue
            there = run if pos >= k else max(0, min(run, min(rows, loc["Blocks"] - pos * rows) - row))
            try:
                blocks = self.read_strip(loc, pos, row, there) if there else []
            except Refused:
                continue
            have[pos] = b"".join(blocks).ljust(run * BLOCK, bytes(1))  # rows that a strip lacks count as zeros
        if len(have) < k:
            raise Refused(f"only {len(have)} of {k} strips can be read", 10)
        code = code_matrix(k, n)
        row_of_lost = invert([code[p] for p in have])[lost]
        total = 0
        for factor, data in zip(row_of_lost, have.values(), strict=True):
            product = data.translate(bytes(gf_mul(factor, x) for x in range(256)))
            total ^= int.from_bytes(product, "little")
        data = total.to_bytes(run * BLOCK, "little")
        return [data[i * BLOCK : (i + 1) * BLOCK] for i in range(run)]


def verified(blocks, sums):
    for b, want in zip(blocks, sums, strict=True):
        if xxhash64(b) != want:
            raise Refused("a block that does not match its checksum", 9)
    return blocks


# ---- the erasure code (9): arithmetic in GF(2^8) ------------------------------------------------------------------------


def gf_mul(a, b):
    r = 0
    while b:
        r ^= a * (b & 1)
        a, b = (a << 1) ^ (0x11D if a & 128 else 0), b >> 1
    return r


def gf_pow(a, n):
    r = 1
    for _ in range(n):
        r = gf_mul(r, a)
    return r


def invert(m):
    """Gauss-Jordan; a + b is a ^ b, and 1 / a is a^254."""
    n = len(m)
    m = [list(row) + [int(i == j) for j in range(n)] for i, row in enumerate(m)]
    for c in range(n):
        p = next(r for r in range(c, n) if m[r][c])
        m[c], m[p] = m[p], m[c]
        scale = gf_pow(m[c][c], 254)
        m[c] = [gf_mul(x, scale) for x in m[c]]
        for r in range(n):
            if r != c:
                m[r] = [x ^ gf_mul(m[r][c], y) for x, y in zip(m[r], m[c])]
    return [row[n:] for row in m]


def code_matrix(k, n):
    v = [[gf_pow(r, c) for c in range(k)] for r in range(n)]
    top = invert(v[:k])
    out = []
    for row in v:
        line = [0] * k
        for x, of_top in zip(row, top):
            line = [a ^ gf_mul(x, b) for a, b in zip(line, of_top)]
        out.append(line)
    return out


# ---- the command line ------------------------------------------------------------------------------------------------


def walk(c, ino, path):
    """Gives a description of an inode and of all below it."""
    attr = c.get_attr(ino)
    it = {"path": path, "ino": ino, "mode": attr["Mode"], "uid": attr["UID"], "gid": attr["GID"], "size": attr["Size"], "mtime": attr["Mtime"]}
    if stat.S_ISREG(attr["Mode"]):
        it["sha256"] = hashlib.sha256(c.read_file(ino, attr["Size"])).hexdigest()
    if stat.S_ISLNK(attr["Mode"]):
        it["target"] = os.fsdecode(c.read_link(ino))
    yield it
    if stat.S_ISDIR(attr["Mode"]):
        for e in list(c.read_dir(ino)):
            yield from walk(c, e["Ino"], os.path.join(path, os.fsdecode(e["Name"])))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--mgmt", required=True, help="address of mgmt, unix:PATH or tcp:HOST:PORT")
    p.add_argument("--slot", help="name of the frontend to be")
    p.add_argument("--pid", type=int, default=os.getpid(), help="of the process that mgmt believes to be that frontend")
    p.add_argument("--identity", help="file that mgmt gave to it")
    p.add_argument("--fs", default="default", help="name of the filesystem")
    p.add_argument("command", choices=["map", "tree"], help="map: print the cluster map; tree: describe all files, with checksums")
    p.add_argument("path", nargs="?", default="", help="of tree: where to begin, such as a/b")
    args = p.parse_args()
    c = Cluster(args.mgmt, Identity(args.identity) if args.identity else None)
    if args.command == "map":
        json.dump(c.map, sys.stdout, default=lambda b: b.hex())
        return
    if not args.slot:
        p.error("tree needs --slot")
    c.register(args.slot, args.pid)
    ino = next(f["Root"] for f in c.map["FSs"] if f["Name"] == args.fs)
    for name in filter(None, args.path.split("/")):
        ino = c.lookup(ino, name)
    for it in walk(c, ino, args.path):
        print(json.dumps(it))
    c.goodbye()


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError) as e:
        sys.exit(f"crake_client: {e}")
