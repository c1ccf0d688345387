"""DCI with scikit-learn's GradientBoostingClassifier itself: the published protocol to the letter, minutes of work.

Eastwood & Williams (2018) as in disentanglement_lib; `dci` has the formulae and the same boosting, many
times faster: the difference is that of another seed.
"""

import numpy as np

from vaecli.analysis.metrics._information import scikit_learn
from vaecli.analysis.metrics._sampling import train_test
from vaecli.analysis.metrics.base import Codes, Score
from vaecli.analysis.metrics.dci import summarise

NEEDS = ("factors",)
IN_ALL = False


def score(codes: Codes, seed: int) -> Score:
    """As `vaecli.metrics.dci.score`. ConfigError without scikit-learn."""
    version = scikit_learn("dci-sklearn")
    from sklearn.ensemble import GradientBoostingClassifier

    train, test = train_test(codes, seed)
    assert train.factors_NK is not None and test.factors_NK is not None
    importance_DK = np.zeros((codes.latents, train.factors_NK.shape[1]))
    accuracy_K = np.zeros(train.factors_NK.shape[1])
    for k, (label_N, label_M) in enumerate(zip(train.factors_NK.T, test.factors_NK.T, strict=True)):
        if np.ptp(label_N) == 0:  # a value so rare that the training points have no other
            accuracy_K[k] = (label_M == label_N[0]).mean()
            continue
        model = GradientBoostingClassifier(random_state=seed).fit(train.mean_ND, label_N)
        importance_DK[:, k] = model.feature_importances_
        accuracy_K[k] = (model.predict(test.mean_ND) == label_M).mean()
    settings = {
        "train_points": len(train),
        "test_points": len(test),
        "predictor": "GradientBoostingClassifier()",
        "scikit-learn": version,
        "seed": seed,
    }
    return summarise(importance_DK, accuracy_K, settings)
