from mimo_role.data.global_batch import GlobalBatchSampler as GlobalBatchSampler
from mimo_role.data.micro_batch import MicroBatch as MicroBatch
from mimo_role.data.role_data_loader import RoleDataLoader as RoleDataLoader
from mimo_role.data.sample_sizes import SampleSizes as SampleSizes
from mimo_role.data.sample_sizes import exchange_sizes as exchange_sizes
