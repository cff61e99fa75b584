"""The ingress gate: HAProxy's configuration, its live route table, and the node's certificates.

* :mod:`sandgate.ingress.certificates` makes or checks what HTTPS is served with;
* :mod:`sandgate.ingress.config` renders what HAProxy reads at its start;
* :mod:`sandgate.ingress.routes` says what a route is, and :mod:`sandgate.ingress.client` changes
  the routes of the running process.
"""
