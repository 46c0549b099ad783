# A cell for the notebook: which runs does the TensorBoard show that was started in it?
from urllib.request import ProxyHandler, build_opener

from tensorboard import manager

[server] = manager.get_all()
address = f"http://localhost:{server.port}/data/runs?reload=true"
print(build_opener(ProxyHandler({})).open(address).read().decode())
