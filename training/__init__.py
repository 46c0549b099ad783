"""What stands between the network and the commands: how it is trained, scored, kept and used."""
