"""Whole files and models through the codec: what is weights is found and coded, all else is deflated."""
