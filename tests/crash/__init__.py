"""The crash campaign: every state that a drive can be left in, mounted and compared with a model.

drive.py        what a power cut leaves of the commands that a workload has sent
workloads.py    what programs do before the power goes
frontend.py     the same, where the C front end overwrites published files
campaign.py     cut, mount, compare, check, write again; `make crash`
bugs.py         bugs put in on purpose, which the campaign must catch
"""
