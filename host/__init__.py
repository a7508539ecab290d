"""What both ends ask of the machine they run on: durable files, children that die with their parent, an MQTT connection.

Knows no message, model or fleet. Nothing here imports numpy.
"""
