"""Adam with weight decay, a piecewise linear rate and gradient accumulation, on both stacks.

bert4keras's own read the step counter while it is being increased (TensorFlow 1.15), so runs differ,
and their accumulation leaves out the last batches. Here one function computes the update, from a
counter that was read before.
"""
from typing import Any, NamedTuple

from fltuning import compat  # before TensorFlow
import tensorflow as tf
from bert4keras.backend import K, keras, piecewise_linear


class Shared(NamedTuple):
    """What all weights of a dtype share in one batch; scalar tensors."""
    rate: Any  # of learning, now
    m_correction: Any  # 1 - beta_1^t
    v_correction: Any  # 1 - beta_2^t
    batches: Any  # how many of this update's batches there were, this one included
    last: Any  # bool: does this batch end an update?


class PromptAdam(keras.optimizers.Optimizer):
    """Adam (arXiv 1412.6980) with decoupled weight decay (arXiv 1711.05101).

    lr_schedule: {batch: factor of the learning rate}, linear in between; batches count from 0.
    exclude_from_weight_decay: parts of weight names.
    grad_accum_steps: batches whose mean gradient makes one update; the rate is that of the first
    of them, and Adam's bias correction counts updates. Gradients of an incomplete group wait for
    the batches to come.
    num_train_steps: batches in all, if known; the last of them ends an update, of the mean of what
    gradients there are.
    """

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7,
                 weight_decay_rate=0.0, exclude_from_weight_decay=(), lr_schedule=None,
                 grad_accum_steps=1, num_train_steps=None, **kwargs):
        if compat.TF2:
            super().__init__(name=kwargs.pop('name', 'PromptAdam'), **kwargs)
            self._set_hyper('learning_rate', learning_rate)
        else:
            super().__init__(**kwargs)
            with K.name_scope(self.__class__.__name__):
                self.iterations = K.variable(0, dtype='int64', name='iterations')
                self.learning_rate = K.variable(learning_rate, name='learning_rate')
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.weight_decay_rate = weight_decay_rate
        self.exclude_from_weight_decay = list(exclude_from_weight_decay)
        self.lr_schedule = {int(t): x for t, x in (lr_schedule or {0: 1.0}).items()}
        self.grad_accum_steps = grad_accum_steps
        self.num_train_steps = num_train_steps

    def slots(self):
        return ['m', 'v'] + (['gradient_sum'] if self.grad_accum_steps > 1 else [])

    def named_slots(self, names):
        """[(name, variable)] of the step counter and of the slots of the weights with these names."""
        labels = ['iterations'] + ['%s/%s' % (name, slot) for name in names for slot in self.slots()]
        return list(zip(labels, self.weights))

    def shared_values(self, iteration, learning_rate, dtype):
        """What all weights of this dtype share in this batch: `Shared`; all read `iteration`."""
        updates = iteration // self.grad_accum_steps
        begin = updates * self.grad_accum_steps
        t = K.cast(updates + 1, dtype)
        last = K.equal((iteration + 1) % self.grad_accum_steps, 0)
        if self.num_train_steps:
            last = tf.logical_or(last, K.equal(iteration + 1, self.num_train_steps))
        return Shared(rate=learning_rate * piecewise_linear(begin, self.lr_schedule, False),
                      m_correction=1 - K.pow(self.beta_1, t), v_correction=1 - K.pow(self.beta_2, t),
                      batches=K.cast(iteration + 1 - begin, dtype), last=last)

    def new_values(self, grad, var, slots, shared):
        """Values of `var` and its slots after this batch, as tensors."""
        if self.grad_accum_steps > 1:
            m, v, total = slots
            total = total + grad
            grad = total / shared.batches
        else:
            m, v = slots
        m_t = self.beta_1 * m + (1 - self.beta_1) * grad
        v_t = self.beta_2 * v + (1 - self.beta_2) * K.square(grad)
        step = (m_t / shared.m_correction) / (
            K.sqrt(v_t / shared.v_correction) + self.epsilon)
        if not any(part in var.name for part in self.exclude_from_weight_decay):
            step = step + self.weight_decay_rate * var
        var_t = var - shared.rate * step
        if self.grad_accum_steps == 1:
            return [var_t, m_t, v_t]
        pairs = [(var_t, var), (m_t, m), (v_t, v), (K.zeros_like(total), total)]
        return [tf.where(tf.fill(K.shape(new), shared.last), new, old) for new, old in pairs]

    def get_updates(self, loss, params):
        """`tf1`: the update operations of one batch."""
        # An embedding's gradient comes as IndexedSlices.
        grads = [tf.convert_to_tensor(grad) for grad in self.get_gradients(loss, params)]
        slots = [[K.zeros(K.int_shape(p), dtype=K.dtype(p)) for _ in self.slots()] for p in params]
        self.weights = [self.iterations] + [s for of_param in slots for s in of_param]
        # The counter is copied before anything can increase it: without this, whether an update
        # saw the old or the new step was left to the order in which threads came by.
        iteration = tf.identity(self.iterations.read_value())
        with tf.control_dependencies([iteration]):
            self.updates = [K.update_add(self.iterations, 1)]
        shared = {dtype: self.shared_values(iteration, self.learning_rate, dtype)
                  for dtype in set(map(K.dtype, params))}
        for grad, param, of_param in zip(grads, params, slots):
            new = self.new_values(grad, param, of_param, shared[K.dtype(param)])
            for variable, value in zip([param] + of_param, new):
                constraint = getattr(param, 'constraint', None)
                if variable is param and constraint is not None:
                    value = constraint(value)
                self.updates.append(K.update(variable, value))
        return self.updates

    def _create_slots(self, var_list):
        """`tf2`: the moments of each weight."""
        for var in var_list:
            for slot in self.slots():
                self.add_slot(var, slot)

    def _prepare_local(self, var_device, var_dtype, apply_state):
        """`tf2`: once a batch, for the weights of a device and dtype."""
        super()._prepare_local(var_device, var_dtype, apply_state)
        values = apply_state[var_device, var_dtype]
        values['shared'] = self.shared_values(
            tf.identity(self.iterations), values['lr_t'], var_dtype)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        """`tf2`: update one weight; the step counter is increased after all of them."""
        slots = [self.get_slot(var, slot) for slot in self.slots()]
        place = var.device, var.dtype.base_dtype
        values = (apply_state or {}).get(place) or self._fallback_apply_state(*place)
        new = self.new_values(grad, var, slots, values['shared'])
        return tf.group(*[x.assign(value) for x, value in zip([var] + slots, new)])

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        dense = tf.convert_to_tensor(tf.IndexedSlices(grad, indices, K.shape(var)))
        return self._resource_apply_dense(dense, var, apply_state)

    def get_config(self):
        config = super().get_config()
        learning_rate = (self._serialize_hyperparameter('learning_rate') if compat.TF2
                         else float(K.get_value(self.learning_rate)))
        config.update(
            learning_rate=learning_rate, beta_1=self.beta_1, beta_2=self.beta_2,
            epsilon=self.epsilon, weight_decay_rate=self.weight_decay_rate,
            exclude_from_weight_decay=self.exclude_from_weight_decay,
            lr_schedule={str(t): x for t, x in self.lr_schedule.items()},
            grad_accum_steps=self.grad_accum_steps, num_train_steps=self.num_train_steps)
        return config


keras.utils.get_custom_objects()['PromptAdam'] = PromptAdam
