"""Slow and obvious EM, for tests to compare with: float64, all rows at once, one loop per sum of the textbook.

Sources: Bishop (2006), sections 9.2 and 9.1; Nigam et al. (2000), section 5.1; scikit-learn for `reg_covar`, for the
stopping of Lloyd's algorithm and for its rule about empty centres. tests/test_reference.py shows why to trust them.

Nothing here repairs a collapsed component: `gaussian_em` stops and says so, and a test leaves that problem out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp
from scipy.stats import Covariance, multivariate_normal

Array = NDArray[np.float64]


# Gaussian mixtures


@dataclass(frozen=True)
class GaussianFit:
    """Parameters after n_iter M-steps, and the history: entry t belongs to the E-step before M-step t.

    All totals are in nats, summed over rows with their weights.
    log_likelihood : (n_iter,) at the E-step.  lower_bound : (n_iter,) F(q_t, theta_{t+1}), after the M-step.
    entropy : (n_iter,) of q_t.  n_effective : (n_iter, k).  final_log_likelihood : of the parameters returned.
    collapsed : a component collapsed, and the rest was not computed; `assume(not fit.collapsed)`.
    """

    weights: Array
    means: Array
    covariances: Array
    log_likelihood: Array
    lower_bound: Array
    entropy: Array
    n_effective: Array
    final_log_likelihood: float
    collapsed: bool


def full_covariances(covariances: Array, covariance_type: str, k: int, d: int) -> Array:
    """Any covariance type, in scikit-learn's shape for it, as (k, d, d)."""
    if covariance_type == "full":
        return np.array(covariances)
    if covariance_type == "tied":
        return np.array([covariances] * k)
    if covariance_type == "diag":
        return np.array([np.diag(variances) for variances in covariances])
    if covariance_type == "spherical":
        return np.array([variance * np.eye(d) for variance in covariances])
    raise ValueError(covariance_type)


def of_type(scatters: Array, sizes: Array, covariance_type: str) -> Array:
    """Covariances (k, d, d) of a type, from sums of squares about the means (k, d, d) and weights N_k (k,)."""
    full, eye = scatters / sizes[:, None, None], np.eye(scatters.shape[1])
    if covariance_type == "full":
        return full
    if covariance_type == "tied":
        return np.repeat(scatters.sum(axis=0)[None] / sizes.sum(), len(sizes), axis=0)
    if covariance_type == "diag":
        return full * eye
    if covariance_type == "spherical":
        return np.trace(full, axis1=1, axis2=2)[:, None, None] * eye / len(eye)
    raise ValueError(covariance_type)


def gaussian_log_density(x: Array, means: Array, covariances: Array, covariance_type: str) -> Array:
    """log N(x_n | mu_k, Sigma_k) : (n, k), nats."""
    k, d = means.shape
    full = full_covariances(covariances, covariance_type, k, d)
    factors = [Covariance.from_cholesky(np.linalg.cholesky(covariance)) for covariance in full]
    columns = [multivariate_normal(mean, factor).logpdf(x) for mean, factor in zip(means, factors, strict=True)]
    return np.stack([np.reshape(column, len(x)) for column in columns], axis=1)


def gaussian_log_joint(x: Array, weights: Array, means: Array, covariances: Array, covariance_type: str) -> Array:
    """log pi_k + log N(x_n | mu_k, Sigma_k) : (n, k), nats; a component of weight 0 has -inf."""
    with np.errstate(divide="ignore"):
        return np.log(weights) + gaussian_log_density(x, means, covariances, covariance_type)


def responsibilities(log_joint: Array, hard: bool = False) -> Array:
    """r_nk : (n, k), rows sum to 1; hard: 1 for the best component, ties to the lowest index."""
    if hard:
        return np.eye(log_joint.shape[1])[log_joint.argmax(axis=1)]
    return np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))


def log_likelihood_of(log_joint: Array, row_weight: Array) -> float:
    """sum_n w_n log sum_k exp(log_joint_nk), nats; a row of weight 0 counts for nothing."""
    present = row_weight > 0
    return float(row_weight[present] @ logsumexp(log_joint[present], axis=1))


def entropy_of(resp: Array, row_weight: Array) -> float:
    """-sum_n w_n sum_k r_nk log r_nk, nats, with 0 log 0 = 0."""
    logs = np.log(np.where(resp > 0, resp, 1.0))
    return float(-(row_weight @ (resp * logs).sum(axis=1)))


def expected_log_joint(resp: Array, log_joint: Array, row_weight: Array) -> float:
    """sum_n w_n sum_k r_nk log_joint_nk, nats, with 0 * -inf = 0."""
    return float(row_weight @ np.where(resp > 0, resp * np.where(resp > 0, log_joint, 0.0), 0.0).sum(axis=1))


def gaussian_covariances(x: Array, resp: Array, means: Array, covariance_type: str, reg_covar: float) -> Array:
    """Sigma_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)^T / N_k, in scikit-learn's shape for the type.

    resp : (n, k), already times the row weights. reg_covar is added to the diagonal.
    """
    d = x.shape[1]
    sizes = resp.sum(axis=0)
    scatters = []
    for j in range(len(means)):
        scatter = np.zeros((d, d))
        for row, r in zip(x, resp[:, j], strict=True):
            scatter += r * np.outer(row - means[j], row - means[j])
        scatters.append(scatter)
    if covariance_type == "tied":
        return sum(scatters) / sizes.sum() + reg_covar * np.eye(d)
    full = [scatter / size + reg_covar * np.eye(d) for scatter, size in zip(scatters, sizes, strict=True)]
    if covariance_type == "full":
        return np.array(full)
    if covariance_type == "diag":
        return np.array([np.diag(covariance) for covariance in full])
    if covariance_type == "spherical":
        return np.array([np.diag(covariance).mean() for covariance in full])
    raise ValueError(covariance_type)


def gaussian_collapsed(covariances: Array, covariance_type: str, sizes: Array, d: int, reg_covar: float) -> bool:
    """Whether any component has too few effective rows, a covariance of no width, or one without a Cholesky factor.

    sizes : (k,), N_k. The rows needed are d + 1 (full), 2 (diag, spherical), 1 (tied).
    """
    needed = {"full": d + 1, "tied": 1, "diag": 2, "spherical": 2}[covariance_type]
    if not (sizes >= needed).all():
        return True
    eigenvalues = np.linalg.eigvalsh(full_covariances(covariances, covariance_type, len(sizes), d))
    return bool((eigenvalues[:, -1] <= 2 * reg_covar).any() or (eigenvalues[:, 0] <= 1e-14 * eigenvalues[:, -1]).any())


def gaussian_em(
    x: Array,
    weights: Array,
    means: Array,
    covariances: Array,
    covariance_type: str,
    n_iter: int,
    reg_covar: float = 0.0,
    sample_weight: Array | None = None,
    hard: bool = False,
    fixed: tuple[str, ...] = (),
) -> GaussianFit:
    """n_iter iterations of EM from the given parameters.

    x : (n, d).  weights : (k,).  means : (k, d).  covariances in scikit-learn's shape for the type.
    sample_weight : (n,), >= 0.  fixed : any of weights, means, covariances, held at what was given; the
    covariances are then about the held means, and reg_covar touches no held covariance.
    """
    row_weight = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    log_likelihood, lower_bound, entropy, n_effective = [], [], [], []
    collapsed = False
    log_joint = gaussian_log_joint(x, weights, means, covariances, covariance_type)
    for _ in range(n_iter):
        resp = responsibilities(log_joint, hard)
        weighted = resp * row_weight[:, None]
        log_likelihood.append(log_likelihood_of(log_joint, row_weight))
        entropy.append(entropy_of(resp, row_weight))
        n_effective.append(weighted.sum(axis=0))
        if not n_effective[-1].all():  # a component of no rows has no mean
            collapsed = True
            break
        if "weights" not in fixed:
            weights = weighted.sum(axis=0) / row_weight.sum()
        if "means" not in fixed:
            means = (weighted.T @ x) / weighted.sum(axis=0)[:, None]
        if "covariances" not in fixed:
            covariances = gaussian_covariances(x, weighted, means, covariance_type, reg_covar)
            collapsed = gaussian_collapsed(covariances, covariance_type, n_effective[-1], x.shape[1], reg_covar)
            if collapsed:
                break
        log_joint = gaussian_log_joint(x, weights, means, covariances, covariance_type)
        lower_bound.append(expected_log_joint(resp, log_joint, row_weight) + entropy[-1])
    return GaussianFit(
        weights=np.array(weights, dtype=float),
        means=np.array(means, dtype=float),
        covariances=np.array(covariances, dtype=float),
        log_likelihood=np.array(log_likelihood),
        lower_bound=np.array(lower_bound),
        entropy=np.array(entropy),
        n_effective=np.array(n_effective).reshape(-1, len(means)),
        final_log_likelihood=np.nan if collapsed else log_likelihood_of(log_joint, row_weight),
        collapsed=collapsed,
    )


def gaussian_n_parameters(k: int, d: int, covariance_type: str) -> int:
    """Free parameters of a mixture: weights less one, means, covariances."""
    covariances = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diag": k * d, "spherical": k}
    return k - 1 + k * d + covariances[covariance_type]


# K-means


@dataclass(frozen=True)
class KMeansFit:
    """What Lloyd's algorithm ends with.

    centers : (k, d).  labels : (n,), those of the centers returned.  inertia : sum_n w_n |x_n - c|^2.
    n_iter : E-steps followed by an update, as scikit-learn counts.  inertia_history : (n_iter,) at each E-step.
    n_relocated : how many times an empty centre took a row.  strict : it stopped because no label changed.
    """

    centers: Array
    labels: NDArray[np.int64]
    inertia: float
    n_iter: int
    inertia_history: Array
    n_relocated: int
    strict: bool


def squared_distances(x: Array, centers: Array) -> Array:
    """|x_n - c_k|^2 : (n, k), by the differences."""
    return np.stack([((x - center) ** 2).sum(axis=1) for center in centers], axis=1)


def kmeans_update(
    x: Array, row_weight: Array, centers: Array, distances: Array, labels: NDArray[np.int64]
) -> tuple[Array, int]:
    """New centres (k, d), and how many empty ones took a row.

    An empty centre takes the row farthest from its own old centre, which leaves its old cluster; the next empty
    one takes the next farthest; ties go to the lowest row. A row of weight 0 is as good as absent. When all
    rows lie on their centres, or a relocation empties a cluster of one row, a centre without rows moves to
    the biggest cluster's (scikit-learn's rule).
    """
    k = len(centers)
    labels = labels.copy()
    sizes = np.array([row_weight[labels == j].sum() for j in range(k)])
    own = np.where(row_weight > 0, distances[np.arange(len(x)), labels], -1.0)
    empty = np.flatnonzero(sizes == 0)
    if own.max() <= 0:
        empty = empty[:0]
    farthest = np.argsort(-own, kind="stable")[: len(empty)]
    labels[farthest] = empty[: len(farthest)]
    sizes = np.array([row_weight[labels == j].sum() for j in range(k)])
    new = np.zeros_like(centers)
    for j in np.flatnonzero(sizes > 0):
        new[j] = row_weight[labels == j] @ x[labels == j] / sizes[j]
    new[sizes == 0] = new[sizes.argmax()]
    return new, len(farthest)


def kmeans_lloyd(
    x: Array, centers: Array, max_iter: int = 300, tol: float = 1e-4, sample_weight: Array | None = None
) -> KMeansFit:
    """Lloyd's algorithm from the given centres, with scikit-learn's stopping.

    It stops when no label changed, or when the centres' squared shifts sum to at most tol times the mean variance
    of the features (unweighted, as there). After the second kind, labels are computed again for the last centres.
    """
    row_weight = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    threshold = tol * x.var(axis=0).mean()
    old_labels = np.full(len(x), -1)
    strict, n_relocated, history = False, 0, []
    for _ in range(max_iter):
        distances = squared_distances(x, centers)
        labels = distances.argmin(axis=1)
        history.append(float(row_weight @ distances.min(axis=1)))
        new, relocated = kmeans_update(x, row_weight, centers, distances, labels)
        n_relocated += relocated
        shift = ((new - centers) ** 2).sum()
        centers = new
        strict = bool(np.array_equal(labels, old_labels))
        if strict or shift <= threshold:
            break
        old_labels = labels
    distances = squared_distances(x, centers)
    if not strict:
        labels = distances.argmin(axis=1)
    inertia = float(row_weight @ distances[np.arange(len(x)), labels])
    return KMeansFit(centers, labels, inertia, len(history), np.array(history), n_relocated, strict)


# Multinomial mixtures


@dataclass(frozen=True)
class MultinomialFit:
    """Parameters after n_iter M-steps, and the history as in GaussianFit.

    objective : (n_iter,) log_likelihood plus log_prior, the quantity that MAP-EM never lowers.
    final_objective : that of the parameters returned.
    """

    weights: Array
    log_prob: Array
    log_likelihood: Array
    objective: Array
    final_log_likelihood: float
    final_objective: float


def log_multinomial_coefficient(counts: Array) -> Array:
    """log (sum_v x_v)! / prod_v x_v! : (n,), nats."""
    return gammaln(counts.sum(axis=1) + 1) - gammaln(counts + 1).sum(axis=1)


def multinomial_log_joint(counts: Array, weights: Array, log_prob: Array) -> Array:
    """log pi_k + log p(x_n | k) : (n, k), nats, with the multinomial coefficient; 0 * -inf = 0."""
    joint = np.zeros((len(counts), len(weights)))
    for n, row in enumerate(counts):
        used = np.flatnonzero(row)
        for j in range(len(weights)):
            joint[n, j] = row[used] @ log_prob[j, used]
    with np.errstate(divide="ignore"):
        return np.log(weights) + joint + log_multinomial_coefficient(counts)[:, None]


def dirichlet_log_prior(log_prob: Array, concentration: float) -> float:
    """sum_kv (concentration - 1) log theta_kv, nats, without the constant; 0 when concentration is 1."""
    return 0.0 if concentration == 1 else float((concentration - 1) * log_prob.sum())


def multinomial_em(
    counts: Array,
    weights: Array,
    log_prob: Array,
    n_iter: int,
    concentration: float = 1.1,
    sample_weight: Array | None = None,
    fixed: tuple[str, ...] = (),
) -> MultinomialFit:
    """n_iter iterations of MAP-EM: theta_kv proportional to sum_n w_n r_nk x_nv + concentration - 1.

    counts : (n, v), dense.  weights : (k,), without a prior.  log_prob : (k, v), rows of exp sum to 1.
    """
    counts = np.asarray(counts, dtype=float)
    row_weight = np.ones(len(counts)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    # A document of weight 0 is absent: with concentration 1 its words may become impossible, and that is no error.
    counts, row_weight = counts[row_weight > 0], row_weight[row_weight > 0]
    log_likelihood, objective = [], []
    log_joint = multinomial_log_joint(counts, weights, log_prob)
    for _ in range(n_iter):
        log_likelihood.append(log_likelihood_of(log_joint, row_weight))
        objective.append(log_likelihood[-1] + dirichlet_log_prior(log_prob, concentration))
        weighted = responsibilities(log_joint) * row_weight[:, None]
        if "weights" not in fixed:
            weights = weighted.sum(axis=0) / row_weight.sum()
        theta = weighted.T @ counts + concentration - 1
        with np.errstate(divide="ignore"):
            log_prob = np.log(theta / theta.sum(axis=1, keepdims=True))
        log_joint = multinomial_log_joint(counts, weights, log_prob)
    final = log_likelihood_of(log_joint, row_weight)
    return MultinomialFit(
        weights=np.array(weights, dtype=float),
        log_prob=np.array(log_prob, dtype=float),
        log_likelihood=np.array(log_likelihood),
        objective=np.array(objective),
        final_log_likelihood=final,
        final_objective=final + dirichlet_log_prior(log_prob, concentration),
    )
