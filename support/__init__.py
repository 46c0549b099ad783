"""What no reader of the paper needs: how commands start and fail, files, texts, devices, checkpoints, pictures. It knows of no network."""
