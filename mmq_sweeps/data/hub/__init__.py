"""Reader of any data set that Hugging Face's ``datasets`` reads: of the Hub, or a folder of your own (extra ``hub``).

``layout`` finds the files of a split, ``source`` gets them and makes a table of them, ``columns`` makes items of its rows.
"""

from mmq_sweeps.data.hub.dataset import HubData

__all__ = ["HubData"]
