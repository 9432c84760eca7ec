from hypothesis import settings

# Machines differ in speed; the time of one example says nothing.
settings.register_profile("mimo", deadline=None)
settings.load_profile("mimo")
