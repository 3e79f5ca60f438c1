"""How fast qworker and its peers are, side by side in one run, on real servers.

::

    apps/          each contender's own app, as its users write it; ``work`` is what handlers do
    contenders     how each is started, and with which settings
    load           what is published, and when; ``fill`` publishes it
    sharedmemory   what handlers note where the measuring process sees it
    tree           CPU and memory of a process and all that it started
    site           the servers, and one contender at work on them
    scenario       what a question is made of; ``scenarios/`` has them, ``draining`` what most share
    results        JSON lines, and the environment that they hold for
    arithmetic     medians, ratios, percentiles; ``table`` shows them
"""
