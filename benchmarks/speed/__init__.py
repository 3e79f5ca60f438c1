"""How fast qworker and its peers are, side by side in one run, on real servers.

::

    apps/          each contender's own app, as its users write it; ``work`` is what handlers do,
                   ``coroutines`` the same for those that are coroutines
    contenders     how each is started, and with which settings
    load           what is published; ``stream`` has its messages, ``fill`` publishes them
    sharedmemory   what handlers note where the measuring process sees it
    tree           CPU and memory of a process and all that it started
    site           the servers, and one contender at work on them
    scenario       what a question is made of; ``scenarios/`` has them, ``draining`` what most share
    remembering    puts ids into a store, as a long past does
    results        JSON lines, and the environment that they hold for
    arithmetic     medians, ratios, percentiles; ``table`` shows them
"""
