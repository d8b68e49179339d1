"""Another's injector, for tests of how ours gets on with it: the server's program, and its webhooks on a cluster.

Run as a program in a pod it serves HTTPS on PORT with the certificate in /tls: what it adds depends on the path.
"""

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 8443
MESH = {"name": "mesh", "restartPolicy": "Always"}  # a native sidecar of its own, before all others
LATE = {"name": "late"}  # a container that comes after ours was called


def build_operations(path: str, pod: dict[str, Any]) -> list[dict[str, Any]]:
    """What the injector at this path adds; nothing if it is there."""
    kind, wanted = ("initContainers", MESH) if path == "/before" else ("containers", LATE)
    spec = pod["spec"]
    if any(each["name"] == wanted["name"] for each in spec.get(kind) or ()):
        return []
    app = spec["containers"][0]
    added = {**wanted, "image": app["image"], "command": ["sleep", "3600"], "securityContext": app["securityContext"]}
    if not spec.get(kind):
        return [{"op": "add", "path": f"/spec/{kind}", "value": [added]}]
    return [{"op": "add", "path": f"/spec/{kind}/{0 if kind == 'initContainers' else '-'}", "value": added}]


class Handler(BaseHTTPRequestHandler):
    """Answers reviews."""

    def do_POST(self) -> None:
        """One review."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        patch = json.dumps(build_operations(self.path.partition("?")[0], request["object"]))
        response = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch"}
        response["patch"] = base64.b64encode(patch.encode()).decode()
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
