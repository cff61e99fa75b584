"""The code interpreter of a sandbox: an HTTP server at port 49999 and the kernels behind it.

Runs on the template's own Python, not the node's: `__main__` is the zygote, which imports all and
forks; `entry` is how a fork gets into its sandbox; `nursery` is that fork, and forks the rest.
"""
