"""What no reader of the paper needs; it knows of no network.

How commands start and fail, files, texts, devices, checkpoints, pictures.
"""
