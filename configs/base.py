"""Every key of IDEAL-JAX with its default: the paper's rule on the built-in capabilities.

Each line says what the key means. [result] keys decide the outcome: a work directory belongs to
one setting of them, and a changed one is refused. [runtime] keys (where and how fast) may change
between restarts. Override any key on the command line: --config.mixture.step=0.3
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()

    c.seed = 0  # [result] base initialisation, plans, sampling

    c.data = d = ConfigDict()
    d.root = ""  # [result] folder with one sub-folder per domain; empty: the built-in capabilities
    d.sources = ConfigDict()  # [result] further domains, from anywhere: see docs/data.md
    d.domains = ""  # [result] comma-separated domains, in order; empty: all of them
    d.tokenizer = "auto"  # [result] the model's; another name or folder must have the same tokens
    d.supervise = "all"  # [result] learn from "all" assistant turns, or the "last" one only
    d.row_length = 64  # [result] T, tokens in a training row
    d.overlong = "truncate"  # [result] what becomes of longer conversations, or "drop"
    d.benchmarks = ""  # [runtime] comma-separated files or folders that train should not leak
    d.decontaminate = False  # [result] leave train examples out that share text with benchmarks
    d.max_segments = 8  # [result] S, examples packed into one row at most
    d.window = 256  # [result] examples looked at together when packing
    d.reference_examples = 256  # [result] of each domain, cut from train if no set is given, and
    d.test_examples = 256  # [result] the same for test; never more than a tenth (docs/data.md)
    d.prefetch = 8  # [runtime] batches prepared ahead of the device
    d.workers = -1  # [runtime] processes that tokenize; 0: none but this; -1: one per processor
    d.cache = ""  # [runtime] folder of tokenized data, shared by all runs; empty: the user's cache
    d.synthetic = s = ConfigDict()
    s.counts = "400,1400,400,400,1400"  # [result] train examples: math,code,reason,instr,trust
    s.noise = 0.4  # [result] share of flipped train labels in the trust domain
    s.reference = 128  # [result] reference examples per domain
    s.test = 256  # [result] test examples per domain

    c.model = m = ConfigDict()
    m.init = "random"  # [result] "random" (own base), base/ or rounds/NN of a run, Hugging Face
    m.d_model = 64  # [result] D, residual width
    m.n_layers = 2  # [result] L, layers
    m.n_heads = 4  # [result] N, query heads
    m.n_kv_heads = 2  # [result] K, key and value heads
    m.head_dim = 16  # [result] H, width of a head
    m.d_ff = 128  # [result] F, SwiGLU width
    m.rope_theta = 10000.0  # [result] base of the rotary frequencies
    m.norm_eps = 1e-5  # [result] epsilon of RMSNorm
    m.tie_embeddings = True  # [result] the output matrix is the transposed embedding
    m.dtype = "float32"  # [result] activations: float32 or bfloat16
    m.param_dtype = "float32"  # [result] parameters and optimizer state
    m.attention = "auto"  # [runtime] kernel: "xla", "blocked", "splash" (TPU), "cudnn" (GPU)
    m.remat = "none"  # [runtime] recompute in the backward pass: "none", "dots", "full", "offload"
    m.unroll = 1  # [runtime] layers in one go of the loop over them: some faster, longer to compile

    c.lora = la = ConfigDict()  # low-rank adapters beside a frozen M_0
    la.rank = 0  # [result] r of each adapter; 0: all parameters are trained
    la.alpha = 16.0  # [result] an adapter's output counts alpha/rank
    la.dropout = 0.0  # [result] share of an adapter's inputs dropped in training
    la.target = "attention/|mlp/"  # [result] regex: dense layers of a block with an adapter

    c.base = b = ConfigDict()  # pre-training of the base model M_0 when model.init is "random"
    b.tokenizer = "byte"  # [result] its tokenizer; "bpe:<size>", trained on the domains; a folder
    b.examples = 16384  # [result] generic examples (built-in data) to pre-train on
    b.steps = 1008  # [result] steps; 0: the random initialisation is the base
    b.batch_size = 16  # [result] rows per step
    b.learning_rate = 3e-3  # [result] peak

    c.training = t = ConfigDict()  # one SFT from M_0
    t.steps = 256  # [result] steps of every round; 0: use epochs
    t.epochs = 0.0  # [result] passes over the round's rows when steps is 0
    t.batch_size = 16  # [result] rows per step, over all devices
    t.micro_batches = 1  # [result] gradient accumulation: slices of a batch
    t.learning_rate = 1e-3  # [result] peak
    t.warmup = 0.05  # [result] share of the steps with rising learning rate
    t.schedule = "cosine"  # [result] decay after the warm-up: cosine, linear or constant
    t.final_learning_rate = 0.0  # [result] share of the peak at the last step
    t.weight_decay = 0.0  # [result] AdamW's decoupled decay of the matrices
    t.beta1 = 0.9  # [result] AdamW
    t.beta2 = 0.99  # [result] AdamW
    t.epsilon = 1e-8  # [result] AdamW
    t.moment_dtype = ""  # [result] AdamW's first moment: float32, bfloat16; "": as parameters
    t.clip_norm = 1.0  # [result] global gradient norm is clipped to this
    t.checkpoint_every = 128  # [runtime] steps between checkpoints
    t.log_every = 8  # [runtime] steps between lines of metrics.jsonl

    c.loss = lo = ConfigDict()
    lo.reduction = "token"  # [result] "token": mean over tokens; "example": mean of example means
    lo.block = 128  # [runtime] positions whose logits exist at one time

    c.mixture = x = ConfigDict()
    x.counts = ""  # [result] given mixture: exactly these counts per domain, in order; or:
    x.examples = 0  # [result] at most so many in all, in natural proportions; 0: all there are
    x.rounds = 2  # [result] updates; one more training than that (raising it continues)
    x.stop = True  # [result] stop when no alpha exceeds its 95 % error; False goes on (paper)
    x.step = 0.15  # [result] m: the largest relative change of a domain in one round
    x.keep_total = False  # [result] the number of examples stays; False: it may grow (paper)
    x.min_share = 0.01  # [result] no domain falls below this share (nor further, if given below it)
    x.max_repetition = 8.0  # [result] no domain is repeated more often than this

    c.influence = i = ConfigDict()
    i.estimator = "ekfac"  # [result] see the README: identity … ekfac, ggn_cg, metagradient
    i.damping = 0.1  # [result] lambda, see damping_mode
    i.damping_mode = "relative"  # [result] "relative" to the mean curvature, or "absolute"
    i.fraction = 0.5  # [result] sigma: share of each domain that is scored; 0: by the data
    i.budget = 0.25  # [result] fraction 0: most FLOPs, as a share of the round's training
    i.confidence = 0.95  # [result] level of intervals, and (fraction 0) of knowing a sign
    i.reference_examples = 1024  # [result] of each reference half, at most this many are used
    i.spread_examples = 64  # [result] of these, how many tell the references' part of the error
    i.curvature_examples = 256  # [result] examples that make up the curvature
    i.iterations = 30  # [result] conjugate gradients: at most this many
    i.tolerance = 0.01  # [result] conjugate gradients: relative residual to stop at
    i.centred = True  # [result] include the derivative of the normaliser: alpha sums to 0
    i.fisher = "sampled"  # [result] labels for Fisher factors: "sampled" or "empirical"
    i.layers = "all"  # [result] dense layers with Kronecker factors: "all", "mlp" or a regex
    i.uncovered = "diagonal"  # [result] other parameters: "diagonal" Fisher or "drop"
    i.inversion = "damped"  # [result] of Kronecker factors: "damped", "pseudoinverse", "tikhonov"
    i.important = 1.0  # [result] share of the layers that count: lowest eigenvalue variance
    i.max_factor = 8192  # [result] a layer wider than this is left to the diagonal
    i.layer_groups = 1  # [runtime] parts in which layers are fitted, to save memory
    i.tangents = 0  # [runtime] right-hand sides solved and scored at one time; 0: all
    i.weights = ""  # [result] v: weight of each capability, in order; empty: equal
    i.replay = "forward"  # [result] metagradient: "forward" (all errors) or "reverse" (less memory)
    i.final = False  # [result] also compute the influence after the last round
    i.batch_size = 32  # [runtime] examples per curvature batch, packed rows per score batch
    i.round = -1  # [runtime] of a run, `ideal-jax influence` measures at this round; -1: the best

    c.eval = e = ConfigDict()
    e.tasks = "exact_match"  # [result] comma-separated; empty: losses only
    e.examples = 256  # [result] test examples generated per domain
    e.max_new_tokens = 24  # [result] tokens generated at most
    e.batch_size = 64  # [runtime] examples per generation and loss batch

    c.verify = v = ConfigDict()  # ideal-jax verify: is what influence predicts what happens?
    v.round = 0  # [runtime] the round whose training is repeated
    v.method = "weights"  # [runtime] "weights" of a domain's tokens, "resample", or "metagradient"
    v.changes = "0.15,0.5"  # [runtime] relative changes b of a domain, both ways
    v.estimators = "identity,ekfac"  # [runtime] what is compared; empty: the run's own
    v.domains = ""  # [runtime] domains to move, comma-separated; empty: all of them
    v.orders = 1  # [runtime] orders of the rows to repeat everything in

    c.plan = pl = ConfigDict()  # ideal-jax plan: will it fit, how fast, what will it cost?
    pl.topology = ""  # [runtime] machine: v5e:4x8, v5p:4x4x8, 2*v6e:16x16, h100:8, h200:1, cpu:1
    pl.search = False  # [runtime] also look for the best mesh, remat and micro-batches
    pl.compile = True  # [runtime] compile ahead of time, where what compiles for it is installed
    pl.price = 0.0  # [runtime] money for one device and hour; 0: none is told
    pl.model = ""  # [runtime] folder with a config.json, or a shipped one's name; "": model.init
    pl.examples = 50000  # [runtime] train examples there are, if not in mixture.counts
    pl.example_tokens = 512  # [runtime] mean length of an example

    c.mesh = me = ConfigDict()  # devices = replica x fsdp x tensor; -1: what is left
    me.replica = 1  # [runtime] copies of the parameters
    me.fsdp = -1  # [runtime] ways parameters and batch are split
    me.tensor = 1  # [runtime] ways each matrix is split
    me.slices = 1  # [runtime] groups of devices with a slow network between; divides replica

    c.logging = lg = ConfigDict()
    lg.progress = True  # [runtime] live progress on the terminal
    lg.tensorboard = False  # [runtime] metrics.jsonl also as TensorBoard's event files
    lg.trace = ""  # [runtime] "10:12": profiler trace of these steps of every training

    return c.lock()
