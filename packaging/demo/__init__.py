"""The demo: a whole etcd-compute on this host, with a guest in it, taken away again without a trace.

``demo.sh`` runs this package (``python -m demo up|status|down``) with the checkout's virtual environment once the packages are
there. It uses the shipped programs as a user would, and libvirt by ``virsh``: it imports nothing of theirs. What it started
is written down under the run directory and marked in its environment, so that ``status`` and ``down`` know it, also after
a run that was killed at any point.
"""
