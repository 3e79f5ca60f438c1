"""Who consumes what: members, leases on shards, and the plans of a service, in a store of all."""
