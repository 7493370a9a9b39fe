"""The gateway: the one address of a service. It splits traffic between revisions, wakes and scales their replicas, fills in features,
captures what was asked and answered, and swaps revisions without losing a request.
"""
