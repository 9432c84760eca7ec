from mimo_role.bridge.activation_spec import ActivationSpec as ActivationSpec
from mimo_role.bridge.autograd import Passage as Passage
from mimo_role.bridge.autograd import cross_together as cross_together
from mimo_role.bridge.bridge import Bridge as Bridge
from mimo_role.bridge.transfer import Transfer as Transfer
from mimo_role.bridge.transfer import TransferOptions as TransferOptions
from mimo_role.bridge.transfer import start_together as start_together
