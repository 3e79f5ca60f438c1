"""Several supervisors on several machines: how tests make them and trouble them.

``network`` makes machines whose links can be cut, ``site`` runs supervisors and a steady load on
them; what they did is judged by ``chaos.checker``.
"""
