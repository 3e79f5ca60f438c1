"""Several supervisors on several machines: how tests make them, trouble them and judge them.

``network`` makes machines whose links can be cut, ``site`` runs supervisors and a steady load on
them, ``checker`` reads the ledger afterwards and says which promises were broken, and where.
"""
