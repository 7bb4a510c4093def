"""The oracles themselves, against numbers that come from elsewhere.

The hyperparameters are such that no term can hide, the gradients run from 1e-6 to 1e2 with both signs and a zero, and
RAdam passes its threshold on the way (rho is 4.8 at t = 5 and 5.7 at t = 6: the paper's 4 would show too).
"""

import inspect
from types import MappingProxyType

import numpy as np
import pytest

import papers

P = [0.5, -1.25, 2.0, -0.03125, 0.75]
GRADS = [
    [1e-6, 0.3, -100.0, 0.0, -2e-3],
    [-4e-4, 2.0, 30.0, -5e-3, 1e-6],
    [2e-2, -0.5, -8.0, 0.4, -0.6],
    [1.5, 9.0, 50.0, -3.0, -1e-4],
    [-7e-6, -40.0, 0.9, 20.0, 5e-2],
    [0.1, 1e-3, -3e-5, -90.0, 8.0],
    [-60.0, 0.6, 4.0, -7e-6, 0.02],
]

ADAM = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
BASE = {
    **dict.fromkeys(["adam", "adamw", "nadam", "radam", "adamax", "adabelief", "adopt", "lamb"], ADAM),
    "ademamix": {**ADAM, "betas": (0.8, 0.95, 0.99), "alpha": 3.0},
    "schedulefreeadamw": ADAM,
    "schedulefreesgd": {"lr": 1e-2, "momentum": 0.8, "weight_decay": 0.1},
    "lion": {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1},
    "sgd": {"lr": 1e-2, "weight_decay": 0.1},
    "rmsprop": {"lr": 1e-2, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    "adagrad": {"lr": 1e-2, "eps": 1e-3, "weight_decay": 0.1},
}

# p after the seven steps of GRADS from P: the method, what is added to BASE, the numbers.
# fmt: off
TORCH = [   # torch.optim 2.13.0 on CPU: float64, one tensor, foreach and fused off. The default dtype was float64 as
            # well: torch keeps NAdam's mu_product in the default dtype, and in float32 it is good to 1e-8 only.
    ("adam", {"weight_decay": 0.0},
     [0.48506985911301204, -1.267959447059137, 2.014703596073992, -0.02249273080678434, 0.7653839472727568]),
    ("adam", {},
     [0.4586815710677439, -1.266410602916459, 2.0144817270231488, -0.012728784513141484, 0.7286659176498116]),
    ("adam", {"amsgrad": True},
     [0.4590588063565148, -1.2666751726011918, 2.0145018230067886, -0.01283496225787472, 0.7287307120802188]),
    ("adam", {"maximize": True},
     [0.47990709455864544, -1.230712437886219, 1.9850774515486964, -0.02647480628177961, 0.7205368799219775]),
    ("adamw", {},
     [0.4816317537597427, -1.2591081429480873, 2.0006571626917844, -0.022288935200312304, 0.760046246119718]),
    ("adamw", {"amsgrad": True, "maximize": True},
     [0.5110351625390496, -1.2231851479486593, 1.9714132833299534, -0.03966870901920319, 0.7297200530435707]),
    ("nadam", {},
     [0.4696438217328715, -1.266522809174101, 2.003143062874544, -0.010744490829534156, 0.7212073883418081]),
    ("nadam", {"momentum_decay": 0.5, "maximize": True},
     [0.47482759010629155, -1.231170958808641, 1.9960629651647759, -0.03072045148473872, 0.7299438900798018]),
    ("nadam", {"decoupled_weight_decay": True},
     [0.48733436349783593, -1.2588787332979257, 1.9893473591901671, -0.019214009519019144, 0.7486857533831394]),
    ("radam", {},
     [0.4891506030445037, -1.201832822781359, 3.3910202270914462, -0.07479807150120114, 0.7490513788178658]),
    ("radam", {"decoupled_weight_decay": True, "maximize": True},
     [0.5047287234280347, -1.2831396422058485, 0.5893395403287836, 0.012586931695309568, 0.7419085896202998]),
    ("adamax", {},
     [0.4656917624246953, -1.2661873206557894, 2.0134882295189462, -0.016676603466885678, 0.7310920890291596]),
    ("adamax", {"maximize": True},
     [0.476631648687471, -1.2319977148220738, 1.9862379783032345, -0.024214592677504084, 0.7233421711652233]),
    ("sgd", {},
     [1.0803612762931696, -0.9557182809638637, 2.2137511839635313, 0.6944437813281532, 0.6701436266047398]),
    ("sgd", {"momentum": 0.7},
     [1.0518113292603204, -0.6422738439669178, 3.0218544083769907, 1.1259095810125535, 0.6173184620126513]),
    ("sgd", {"momentum": 0.7, "dampening": 0.4, "maximize": True},
     [0.15864725479034159, -1.5853265092134239, 0.12420395104230453, -0.7249958415981156, 0.8141466908994076]),
    ("sgd", {"momentum": 0.7, "nesterov": True},
     [1.4667316485952837, -0.530903477556541, 2.9215103476431246, 1.503867007819491, 0.5773468251636102]),
    ("rmsprop", {},
     [0.44331249000399287, -1.2868237881681324, 2.0030906715031986, -0.002618983097011188, 0.701953016458146]),
    ("rmsprop", {"centered": True},
     [0.4303454104056087, -1.2937849851857666, 2.005562765498634, -0.0001819337001486996, 0.6943976667666412]),
    ("rmsprop", {"momentum": 0.7},
     [0.30385862927118035, -1.3691156665718944, 2.019515521882777, 0.03859983033558789, 0.6374842305347797]),
    ("rmsprop", {"centered": True, "momentum": 0.7, "maximize": True},
     [0.37735699856816024, -1.0979338138049768, 1.9714527989072619, -0.0012949929012250967, 0.5803631842279394]),
    ("adagrad", {},
     [0.475177830324809, -1.266825636705144, 2.003047296963001, -0.015683951837484455, 0.7291904939568019]),
    ("adagrad", {"lr_decay": 0.3, "initial_accumulator_value": 0.2},
     [0.4951222352385425, -1.2598871955251134, 2.0057807760889927, -0.030612212544955806, 0.7464554365223667]),
    ("adagrad", {"maximize": True},
     [0.4795732166195778, -1.231742580078569, 1.996729240942492, -0.02865222898681582, 0.7319165619045948]),
]
PACKAGES = [   # In float64, foreach off: pytorch_optimizer 4.1.0 (its clip_lambda gets t, the paper's bound t - 1),
    ("adopt", {},   # schedulefree 1.4.1
     [0.4778003826640143, -1.2503094105647825, 1.9950268723950053, -0.025614457889596858, 0.7374004653411357]),
    ("adopt", {"clip": False},
     [0.6614220881124404, -1.3366657500116068, 1.9950268723950053, -0.6356528811781882, 0.5666836220441314]),
    ("ademamix", {},
     [0.47998219327696373, -1.2595007625913741, 2.002209249512571, -0.021375681370810654, 0.7608401880245309]),
    ("ademamix", {"t_alpha": 6, "t_beta3": 6},
     [0.47952301703845657, -1.2599274081920284, 2.0092747686275856, -0.021434905883517777, 0.7615539525265194]),
    ("schedulefreeadamw", {},
     [0.4828476660007021, -1.2644016370787183, 1.9920062933083509, -0.023664330337974326, 0.7553097723885155]),
    ("schedulefreeadamw", {"warmup_steps": 3, "weight_lr_power": 1.0},
     [0.4798626962727204, -1.254994495879654, 1.9870688475474227, -0.026883970694494216, 0.7519697410178935]),
    ("schedulefreesgd", {},
     [0.675848649643938, -1.1050254762981966, 2.438018933300264, 0.2626608025236916, 0.7165866013277372]),
]
PAPER = [   # Written out from the paper in 50-digit arithmetic (mpmath), on the exact values of the float64 inputs.
    ("adam", {"eps_hat": True},
     [0.4600159051205553, -1.2661985501180177, 2.0144812288629677, -0.018105335603616882, 0.7293413091776834]),
    ("adam", {"eps_hat": True, "amsgrad": True},
     [0.4603920421308015, -1.266463091718799, 2.0145013251734136, -0.018211511517929258, 0.7294068170564477]),
    ("adamw", {"eps_hat": True},
     [0.4812941447032459, -1.2589749087966162, 2.000656663242446, -0.024205896096718686, 0.7546573251607099]),
    ("adamax", {"eps_hat": True},
     [0.4656920254117726, -1.2661872633286573, 2.0134882296788263, -0.016676604515454, 0.7310918141689178]),
    ("sgd", {"momentum": 0.7, "dampening": 0.4, "lr_in_momentum": True},
     [0.8304429001737492, -0.8873988781968031, 3.832156668814059, 0.6631777069128598, 0.6694885415467287]),
    ("sgd", {"momentum": 0.7, "nesterov": True, "lr_in_momentum": True, "maximize": True},
     [-0.4849590679972775, -1.923527973938475, 1.0055799747489005, -1.5652277941068664, 0.8953120457333992]),
    ("rmsprop", {"eps_hat": True},
     [0.45943493268329566, -1.2854902423284618, 2.003090693370941, -0.027787138591459593, 0.710174873203862]),
    ("rmsprop", {"eps_hat": True, "centered": True, "momentum": 0.7},
     [0.33439664245829576, -1.3841390355970855, 2.02710355270447, -0.03987493870552002, 0.6531383205243755]),
    ("adagrad", {"eps_hat": True, "initial_accumulator_value": 0.2},
     [0.4954733288489015, -1.26032296500845, 2.0030472900036553, -0.027947955761743516, 0.7413823589472874]),
    ("adabelief", {},
     [0.4838581971092612, -1.2627988502379113, 2.0039787144105867, -0.02629919375838303, 0.7486432918085584]),
    ("adabelief", {"decoupled_weight_decay": False, "maximize": True},
     [0.5001308625348411, -1.225632791729141, 1.981701150464335, -0.03539744014550356, 0.7295937284464621]),
    ("adopt", {},
     [0.4778003826640143, -1.2503094105647825, 1.9950268723950053, -0.025614457889596855, 0.7374004653411357]),
    ("adopt", {"clip": False},
     [0.6614220881124404, -1.3366657500116068, 1.9950268723950053, -0.6356528811781883, 0.5666836220441315]),
    ("adopt", {"decoupled_weight_decay": True, "maximize": True},
     [0.5077676483303599, -1.2404417457433365, 1.9929183917956002, -0.036685779260026204, 0.7448008643623452]),
    ("ademamix", {},
     [0.4799821932769637, -1.259500762591374, 2.002209249512571, -0.021375681370810654, 0.7608401880245309]),
    ("ademamix", {"t_alpha": 4, "t_beta3": 6},
     [0.4789043405438441, -1.2609582014567295, 2.011014598204941, -0.02139594799423472, 0.762637070470399]),
    ("ademamix", {"t_beta3": 20, "maximize": True},
     [0.5193717286611145, -1.2150679056004285, 1.9494161163299792, -0.042855748514847795, 0.7202372590935413]),
    ("schedulefreeadamw", {},
     [0.4828476660007021, -1.2644016370787179, 1.9920062933083509, -0.023664330337974326, 0.7553097723885156]),
    ("schedulefreeadamw", {"warmup_steps": 4, "r": 0.5, "maximize": True},
     [0.5160934702979335, -1.2370761586717995, 1.9987920151393177, -0.038762569553612125, 0.7477833026740929]),
    ("schedulefreeadamw", {"weight_lr_power": 1.0, "warmup_steps": 3},
     [0.4798626962727204, -1.2549944958796537, 1.987068847547423, -0.02688397069449421, 0.7519697410178934]),
    ("schedulefreesgd", {},
     [0.675848649643938, -1.1050254762981968, 2.4380189333002646, 0.2626608025236916, 0.7165866013277373]),
    ("schedulefreesgd", {"warmup_steps": 4, "r": 0.5, "weight_lr_power": 1.0, "maximize": True},
     [0.28177786798128884, -1.442127419871044, 2.277354499822211, -0.40897316938852346, 0.7874182836767606]),
    ("lion", {},
     [0.46662033266737957, -1.2312064160239138, 1.995992019940068, -0.011061845227303104, 0.7745760734264442]),
    ("lion", {"maximize": True},
     [0.5264006323675995, -1.2513459965635338, 1.976091840199848, -0.05100196508738308, 0.7149553741260243]),
    ("adamw", {"cautious_decay": True},
     [0.48260523097058944, -1.2641369724162899, 2.006650922969875, -0.022340037176737663, 0.7638380746012283]),
    ("adamw", {"cautious_decay": True, "amsgrad": True, "maximize": True},
     [0.5135553941021354, -1.2268402663214917, 1.9793130211751828, -0.03979636432046891, 0.7311660333960172]),
    ("lion", {"cautious_decay": True},
     [0.4675649550124995, -1.23495760492127, 2.00396602799, -0.011104062187656218, 0.7784108]),
    ("lion", {"cautious_decay": True, "maximize": True},
     [0.52895051, -1.25627373875, 1.982021992002, -0.05113635371875, 0.7163573925537392]),
    # timm 1.0.31's Lamb (max_grad_norm=None, always_adapt=True) is within 7e-16 of all three.
    ("lamb", {},
     [0.4613210486899991, -1.2666916498653225, 1.9985781635492, -0.009789804950491362, 0.7694943299029703]),
    ("lamb", {"bias_correction": False},
     [0.46099383518202963, -1.2742344147525508, 2.0073653131273774, -0.013007842037779648, 0.761127618950665]),
    ("lamb", {"maximize": True},
     [0.5224662648899717, -1.213844432504223, 1.9500167162918662, -0.05104126968831389, 0.7212139855218359]),
]
# fmt: on
CASES = TORCH + PACKAGES + PAPER

# What seven steps of float64 can lose. The first-order running error analysis (Higham 2002, 3.3: each operation adds u
# times its result to what its operands bring along, a power 2u) of all cases gives at most 30 roundings of size
# s = |p_0| + Σ |p_t - p_{t-1}|; rmsprop, centered with momentum, is the worst. torch's numbers are as rounded as ours.
ROUNDINGS = 2 * 30
U = 2.0**-53


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble], ids=["float64", "longdouble"])
@pytest.mark.parametrize(("name", "options", "expected"), CASES, ids=["-".join([n, *o]) for n, o, _ in CASES])
def test_seven_steps(name, options, expected, dtype):
    hyper = BASE[name] | options
    p = np.array(P, dtype)
    state = papers.start(name, p, **hyper)
    size = abs(p)
    for t, g in enumerate(np.array(GRADS, dtype), start=1):
        for x in (p, g, *state.values()):
            if isinstance(x, np.ndarray):
                x.flags.writeable = False  # an oracle that writes to its arguments raises
        old, keys = p, state.keys()
        p, state = papers.ORACLES[name](t, p, g, MappingProxyType(state), **hyper)
        size = size + abs(p - old)
        assert type(state) is dict
        assert state.keys() == keys
        assert {x.dtype for x in (p, *state.values())} == {np.dtype(dtype)}
    assert np.all(abs(p - expected) <= ROUNDINGS * U * size)


def test_centered_rmsprop_clamps_its_variance_at_zero():
    """By hand: v = ½·1 + ½·1 = 1, mean = ½·2 + ½·1 = 1½, v - mean² < 0, so p = 0 - ¼·1/(0 + ½). torch says NaN."""
    state = {"v": np.array([1.0]), "mean": np.array([2.0])}
    p, state = papers.rmsprop(2, np.zeros(1), np.ones(1), state, lr=0.25, alpha=0.5, eps=0.5, centered=True)
    assert (p[0], state["v"][0], state["mean"][0]) == (-0.5, 1.0, 1.5)


def test_every_option_of_every_oracle_is_exercised():
    for name, oracle in papers.ORACLES.items():
        options = {k for k, x in inspect.signature(oracle).parameters.items() if x.kind is x.KEYWORD_ONLY}
        assert options == BASE[name].keys() | {k for n, o, _ in CASES if n == name for k in o}, name
