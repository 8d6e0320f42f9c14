"""The training of a site in run_nvflare_swarm.py: changes the parameters a little, and tells when."""

import nvflare.client as flare
import poc
from nvflare.client import FLModel

flare.init()
place = poc.place_of(flare.get_site_name())
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    place.rounds.mixed()
    params = {name: value + 1e-3 for name, value in model.params.items()}
    place.rounds.save()  # each time, for it is not said which round is the last
    place.rounds.trained()
    flare.send(FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
