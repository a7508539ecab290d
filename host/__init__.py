"""What both ends ask of the machine they run on: durable files, children that die with them, MQTT.

Knows no message, model or fleet. Nothing here imports numpy.
"""
