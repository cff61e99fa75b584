"""Every port of a sandbox has a public host name."""

import requests
from e2b import Sandbox

with Sandbox.create() as sandbox:
    host = sandbox.get_host(3000)
    print(f"port 3000 is at https://{host}")
    print(f"nothing listens yet: {requests.get(f'https://{host}').json()['message']}")
