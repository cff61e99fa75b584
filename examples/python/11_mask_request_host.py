"""Development servers often refuse a Host that they do not know: show them one that they do."""

import requests
from e2b import Sandbox

SERVER = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class ShowHost(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        for name in ("Host", "X-Forwarded-Host"):
            self.wfile.write(f"{name}: {self.headers[name]}\\n".encode())

HTTPServer(("", 8080), ShowHost).serve_forever()
"""

with Sandbox.create(network={"mask_request_host": "localhost:${PORT}"}) as sandbox:
    sandbox.files.write("server.py", SERVER)
    sandbox.commands.run("python server.py", background=True)
    host = sandbox.get_host(8080)
    print(f"requested: https://{host}")
    print(f"the server saw:\n{requests.get(f'https://{host}').text}")
