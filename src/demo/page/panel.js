'use strict';
// The panel of the demonstration: asks for a fault, and shows what became of it.
(() => {
  const $ = id => document.getElementById(id), panel = $('panel'), slider = $('slider');
  const NAMES = {
    uncover: 'Uncover the sensor', cover: 'Cover the sensor', pull: 'Pull the cable', plug: 'Plug the cable in',
    'kill-server': 'Kill the server', 'start-server': 'Start the server', 'kill-broker': 'Kill the broker',
    'start-broker': 'Start the broker', 'cut-power': 'Cut the power', 'give-power': 'Give the power back',
    'set-clock': 'Set the clock', 'reset-clock': 'Set the clock right',
  };
  let sliding = 0, wanted = null;
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };

  function show(s) {
    for (const button of panel.querySelectorAll('[data-on]')) {
      button.dataset.act = s[button.dataset.on] ? button.dataset.yes : button.dataset.no;
      put(button, NAMES[button.dataset.act]);
    }
    for (const button of panel.querySelectorAll('button')) button.disabled = s.over || (button.dataset.on === 'broker_up' && !s.broker_is_own);
    slider.disabled = s.over;
    if (Date.now() - sliding > 1500 && document.activeElement !== slider) slider.value = s.light;
    put($('slid'), Math.round(slider.value) + (s.is_covered ? ', covered' : ''));
    put($('happens'), s.over ? 'The account is being closed; it is in the terminal.' : s.told.replace(/^\d+\. /, ''));
    put($('watch'), s.over ? '' : s.watch);
  }

  async function ask(act) {
    try {
      const answer = await fetch('/panel', {method: 'POST', body: act, headers: {'X-Panel-Token': panel.dataset.token}});
      if (!answer.ok) put($('watch'), await answer.text());
    } catch (error) { put($('watch'), 'The demonstration does not answer: it is over.'); }
    look();
  }

  async function look() {
    try { show(await (await fetch('/panel', {cache: 'no-store'})).json()); } catch (error) { /* The page says that it is lost. */ }
  }

  panel.addEventListener('click', e => { const act = e.target.dataset.act; if (act && !e.target.disabled) ask(act); });
  slider.addEventListener('input', () => {
    sliding = Date.now(); put($('slid'), slider.value);
    // A hand moves it faster than anybody needs to know.
    if (wanted === null) setTimeout(() => { ask('light=' + wanted); wanted = null; }, 150);
    wanted = slider.value;
  });
  setInterval(look, 1000);
  look();
})();
