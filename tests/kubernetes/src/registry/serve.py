"""A registry of npm and an index of PyPI (PEP 503) with one package each, packed here."""
import base64
import hashlib
import http.server
import io
import json
import pathlib
import tarfile
import urllib.parse
import zipfile

HERE = pathlib.Path(__file__).parent


def npm_archive():
    manifest = {"name": "@story/teller", "version": "1.0.0", "bin": {"teller": "server.js"}}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in {
            "package.json": json.dumps(manifest).encode(),
            "server.js": (HERE / "server.js").read_bytes(),
        }.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return manifest, packed.getvalue()


def wheel():
    info = "story_teller-1.0.0.dist-info"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("story_teller.py", (HERE / "server.py").read_text())
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: story-teller\nVersion: 1.0.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: story\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nstory-teller = story_teller:main\n")
        archive.writestr(f"{info}/RECORD", "")
    return packed.getvalue()


MANIFEST, ARCHIVE = npm_archive()
WHEEL = wheel()
WHEEL_NAME = "story_teller-1.0.0-py3-none-any.whl"


class Registry(http.server.BaseHTTPRequestHandler):
    def found(self):
        path = urllib.parse.unquote(self.path)
        if path == "/npm/@story/teller":
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(ARCHIVE).digest()).decode()
            tarball = f"http://{self.headers['Host']}/npm/teller.tgz"
            version = MANIFEST | {"dist": {"tarball": tarball, "integrity": integrity}}
            document = {"name": MANIFEST["name"], "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
            return "application/json", json.dumps(document).encode()
        if path == "/npm/teller.tgz":
            return "application/octet-stream", ARCHIVE
        if path == "/simple/story-teller/":
            digest = hashlib.sha256(WHEEL).hexdigest()
            return "text/html", f'<a href="/{WHEEL_NAME}#sha256={digest}">{WHEEL_NAME}</a>'.encode()
        if path == f"/{WHEEL_NAME}":
            return "application/octet-stream", WHEEL
        return None

    def do_GET(self):
        found = self.found()
        kind, content = found or ("text/plain", b"there is no such thing")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


http.server.ThreadingHTTPServer(("", 8080), Registry).serve_forever()
