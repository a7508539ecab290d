"""The demo: the whole loop on one machine, through the same commands and sockets that anybody would use.

It starts real processes (broker, server, agents) by the command line, plays the people who wear the devices, and reads
the outcome off the agents' sockets and the server's REST API. It imports neither agent nor server.
"""
