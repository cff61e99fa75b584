"""The egress gateway: a transparent TCP proxy by name and a filtering DNS resolver.

It is a process of its own (``python -m sandgate.egress``) that knows sandboxes by their source
address and is told their policies over a control socket. A sandbox it was not told about gets
nothing. Parsers are pure; see :mod:`sandgate.egress.gateway` for how the parts are joined.
"""
